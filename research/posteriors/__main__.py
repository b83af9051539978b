import sys

from research.posteriors import boxes, sbibm, study

if sys.argv[1:2] == ["sbibm"]:
    sbibm.main(sys.argv[2:])
elif sys.argv[1:2] == ["boxes"]:
    boxes.main(sys.argv[2:])
else:
    study.main()
