CLAIM := With pseudo-supervised learning first, 60 % of the cost give the accuracy of the baseline
PAPER := CORE, Table 8: PSL-10K + G2R has 89.5 at 60 % and 91.8 at 100 % of the cost; the baseline has 89.5
RULE := psl60 beats real60, which costs the same, with five labels a class
ARMS := real real60 g2r psl psl60 real.samples untrained supervised
COMPARE := psl60>real60:probe@5 psl60>real:probe@5 psl>g2r:probe@5 psl>real:probe@5
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
