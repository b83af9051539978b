import sys

from research.posteriors import fair, sbibm

STUDIES = {"fair": fair.main, "sbibm": sbibm.main}

if sys.argv[1:2] == [] or sys.argv[1] not in STUDIES:
    sys.exit(f"python -m research.posteriors needs the name of a study: {', '.join(STUDIES)}")
STUDIES[sys.argv[1]](sys.argv[2:])
