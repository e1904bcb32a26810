# ImageNet with the networks of CORE, for a cluster: NPROC processes a node. 100 epochs.
NPROC ?= 8
TRAIN ?= imagenet/train
TEST ?= imagenet/val
SSL ?= --preset core-imagenet --image-size 224 --nproc $(NPROC)
STEPS ?= 31280
JUDGE ?= --preset simclr-imagenet --image-size 224 --nproc $(NPROC) --method supervised --steps 28150
GEN ?= --preset ldm-256 --first-stage CompVis/ldm-vq-f8 --nproc $(NPROC)
GEN_STEPS ?= 200000
SAMPLE ?= --steps 50 --batch-size 64 --nproc $(NPROC)
PER_ROW ?= 1
NUM ?= 1281167
