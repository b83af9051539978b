from research.which_flow.grids import main

main()
