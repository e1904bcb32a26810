CLAIM := Synthetic images help more when real images are few
PAPER := CORE, Figure 6: gains on a tenth of CIFAR-10; MixDiff, Figure 4: +5.1 points on a quarter of ImageNet-100
RULE := on a fifth of the images pairs beats real with five labels a class, and by more than on all of them
SHARE := 0.2
SETTING := digits-0.2
ARMS := real pairs mixed g2r real.samples none.samples untrained supervised
COMPARE := pairs>real:probe@5 mixed>real:probe@5 g2r>real:probe@5 real.samples<none.samples:corrected
AGAINST := digits
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
