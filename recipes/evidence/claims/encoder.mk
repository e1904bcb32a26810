CLAIM := A longer trained encoder makes a better generator
PAPER := CORE, Table 1: FID 4.84, 3.82, 3.41 on CIFAR-10 with 5, 50, 100 % of the training
RULE := the distance with 100 % of the steps is below that with 5 %
ARMS := real.samples real50.samples real5.samples none.samples
COMPARE := real.samples<real5.samples:corrected real50.samples<real5.samples:corrected real5.samples<none.samples:corrected
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
