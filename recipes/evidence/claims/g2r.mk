CLAIM := Training on real images and samples beats training on real images at equal cost
PAPER := CORE, Table 5: 89.5 -> 90.9 on CIFAR-10, 43.8 -> 45.9 on Tiny-ImageNet
RULE := g2r beats real with five labels a class
ARMS := real g2r real.samples untrained supervised
COMPARE := g2r>real:probe@5 g2r>real:knn5@5 g2r>real:probe@1 g2r>real:probe@20 g2r>real:probe
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
