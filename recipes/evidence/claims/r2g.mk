CLAIM := A generator that is conditioned on features makes images nearer to real ones than one without a condition
PAPER := CORE, Table 1: FID 5.34 -> 3.41 on CIFAR-10, 43.40 -> 20.13 on ImageNet
RULE := the distance of real.samples is below that of none.samples
ARMS := real.samples none.samples
COMPARE := real.samples<none.samples:corrected real.samples>none.samples:precision real.samples>none.samples:recall
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
