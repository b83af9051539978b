from research.translation.study import main

main()
