CLAIM := A second round improves both the generator and the encoder
PAPER := CORE, Figure 5 and Table 6: FID 5.34 -> 3.51 and accuracy rise over rounds on CIFAR-10
RULE := the samples of round 2 are nearer than those of round 1
ARMS := real g2r g2r2 real.samples g2r.samples none.samples untrained supervised
COMPARE := g2r.samples<real.samples:corrected g2r2>g2r:probe@5 g2r2>real:probe@5
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
