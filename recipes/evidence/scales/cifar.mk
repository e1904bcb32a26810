# CIFAR-10 at 32 px with the networks of CORE, for one GPU-day a seed.
TRAIN ?= torchvision:CIFAR10:train
TEST ?= torchvision:CIFAR10:test
SSL ?= --preset core-cifar
STEPS ?= 100000
JUDGE ?= --preset simclr-cifar --method supervised --steps 20000
GEN ?= --preset adm-cifar
GEN_STEPS ?= 200000
SAMPLE ?= --steps 50 --batch-size 1024
PER_ROW ?= 2
NUM ?= 100000
