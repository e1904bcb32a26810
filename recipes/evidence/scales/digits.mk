# 901 digits of 8 px to train on and 896 to test on. A seed takes a quarter of an hour of one CPU core.
TRAIN ?= digits:8:half
TEST ?= digits:8:half-test
SSL ?= --preset tiny-digits
STEPS ?= 600
JUDGE ?= --preset tiny-digits --method supervised
GEN ?= --preset tiny --no-flip --preview-every 0
GEN_STEPS ?= 800
SAMPLE ?= --steps 20 --batch-size 256
PER_ROW ?= 2
NUM ?= 1802
