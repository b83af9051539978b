from research.translation.answers import main

main()
