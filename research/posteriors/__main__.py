from research.posteriors.study import main

main()
