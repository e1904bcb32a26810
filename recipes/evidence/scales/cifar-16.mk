# CIFAR-10 at 16 px: a tenth of 45,000 images to train on, drawn by seed, and 5,000 to test on, none of them of the
# official test set. Hours on two CPU cores. Make the files with: bash recipes/evidence/scales/cifar-16.sh TAR DATA
DATA ?= evidence-out/cifar-16-data
TRAIN ?= $(DATA)/train.safetensors
TEST ?= $(DATA)/test.safetensors
SHARE ?= 0.1
AUGMENT ?= --augment-set crop=0.3,1 --augment-set blur=0 --augment-set jitter=0.5 --augment-set hue=0.1
SSL ?= --preset tiny --batch-size 128 $(AUGMENT)
STEPS ?= 1500
JUDGE ?= --preset tiny --method supervised --batch-size 128 $(AUGMENT) --steps 3000
GEN ?= --preset tiny --preview-every 0
GEN_STEPS ?= 4000
SAMPLE ?= --steps 20 --batch-size 256
PER_ROW ?= 2
NUM ?= 9000
PROBES ?= probe5 probe20 probe
