# 901 digits of 8 px to train on and 896 to test on. A seed takes a quarter of an hour of one CPU core.
TRAIN ?= digits:8:half
TEST ?= digits:8:half-test
CROP ?= 0.4,1
AUGMENT ?= --augment-set flip=0 --augment-set jitter=0 --augment-set grey=0 --augment-set blur=0 --augment-set crop=$(CROP)
SSL ?= --preset tiny --batch-size 64 $(AUGMENT)
STEPS ?= 600
JUDGE ?= --preset tiny --method supervised --batch-size 64 $(AUGMENT) --steps 600
GEN ?= --preset tiny --no-flip --preview-every 0
GEN_STEPS ?= 800
SAMPLE ?= --steps 20 --batch-size 256
PER_ROW ?= 2
NUM ?= 1802
