"""`dpt ipr`: iterative prompt relabelling, a whole run or one stage at a time."""
