import sys

from research.posteriors import sbibm, study

if sys.argv[1:2] == ["sbibm"]:
    sbibm.main(sys.argv[2:])
else:
    study.main()
