from research.flow_gain.study import main

main()
