from research.forward.study import main

main()
