import sys

from research.posteriors import sbibm

if sys.argv[1:2] != ["sbibm"]:
    sys.exit("python -m research.posteriors needs the name of a study: sbibm")
sbibm.main(sys.argv[2:])
