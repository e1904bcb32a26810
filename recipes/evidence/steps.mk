# Included by the experiments: how models, samples and scores are made, by ordinary verbs.
# An arm ARM of seed SEED is OUT/SEED/ARM.safetensors, an encoder. From it follow ARM.z (its features), ARM.g (a generator
# on them) and ARM.samples. Every file appears by a final rename, so that a stopped make resumes.
SHELL := /bin/bash
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
SCALE ?= digits
include $(HERE)scales/$(SCALE).mk

SEEDS ?= 10 11 12 13 14
SETTING ?= $(SCALE)
OUT ?= evidence-out/$(SETTING)
RESULTS ?= $(HERE)results/$(SETTING)
# A share of the training images, drawn by seed. Probes train on labels of all of them.
SHARE ?= 1
# N, how often an epoch of G2R shows a real image: as often as its samples.
REPEAT ?= $(PER_ROW)
share_of_steps = $(shell echo $$(($(STEPS) * $(1) / 100)))
PSL_STEPS ?= $(call share_of_steps,10)
SHORT_STEPS ?= $(call share_of_steps,60)
GUIDANCE ?= 1
# Probes with 1, 5, 20 and all labels a class. A search needs fewer.
PROBES ?= probe1 probe5 probe20 probe
PROBABILITY ?= 0.5

run := $(HERE)run.sh
seed = $(firstword $(subst /, ,$*))
ssl = $(run) $@ train-ssl $(SSL) --seed $(seed) --out $@
of_seeds = $(foreach one,$(SEEDS),$(patsubst %,$(RESULTS)/$(one)/%.json,$(1)))

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all
all: $(call of_seeds,$(ARMS)) $(RESULTS)/raw.json

# Data; `made` is what an experiment makes itself. The judge sees other images than the models that it judges, and another seed.
ifeq ($(SHARE),1)
data = $(TRAIN)
some = $(made)
else
data = $(OUT)/$(seed)/train.json
some := $(OUT)/%/train.json
$(some):
	$(run) $@ inflate --real $(TRAIN) --fraction $(SHARE) --seed $(seed) --out $@
endif
$(OUT)/judge.safetensors: $(made)
	$(run) $@ train-ssl $(JUDGE) --data $(TEST) --seed 1000 --out $@

# Encoders without samples: the baseline, shorter runs, labels, no training.
$(OUT)/%/real.safetensors: $(some)
	$(ssl) --data $(data) --steps $(STEPS)
$(OUT)/%/real60.safetensors: $(some)
	$(ssl) --data $(data) --steps $(SHORT_STEPS)
$(OUT)/%/real50.safetensors: $(some)
	$(ssl) --data $(data) --steps $(call share_of_steps,50)
$(OUT)/%/real5.safetensors: $(some)
	$(ssl) --data $(data) --steps $(call share_of_steps,5)
$(OUT)/%/supervised.safetensors: $(some)
	$(ssl) --method supervised --views 2g --data $(data) --steps $(STEPS)
$(OUT)/%/untrained.safetensors: $(some)
	$(ssl) --data $(data) --lr 0 --weight-decay 0 --steps 30

# R2G: a generator on the features of an encoder; and one without a condition, as many samples of it.
$(OUT)/%.z.safetensors: $(OUT)/%.safetensors
	$(run) $@ extract --data $(data) --encoder $< --out $@
$(OUT)/%.g.safetensors: $(OUT)/%.z.safetensors
	$(run) $@ train-gen $(GEN) --seed $(seed) --data $(data) --features $< --steps $(GEN_STEPS) --out $@
$(OUT)/%.samples.safetensors: $(OUT)/%.g.safetensors $(OUT)/%.z.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --features $(word 2,$^) --per-row $(PER_ROW) --guidance $(GUIDANCE) --out $@
$(OUT)/%/none.g.safetensors: $(some)
	$(run) $@ train-gen $(GEN) --seed $(seed) --data $(data) --steps $(GEN_STEPS) --out $@
$(OUT)/%/none.samples.safetensors: $(OUT)/%/none.g.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --num $(NUM) --out $@

# Encoders on real and synthetic images, at equal steps.
$(OUT)/%/union.json: $(OUT)/%/real.samples.safetensors
	$(run) $@ inflate --real $(data) --synthetic $< --out $@
$(OUT)/%/sequence.json: $(OUT)/%/real.samples.safetensors
	$(run) $@ inflate --real $(data) --synthetic $< --repeat $(REPEAT) --order sequential --out $@
$(OUT)/%/g2r.json: $(OUT)/%/real.samples.safetensors
	$(run) $@ inflate --real $(data) --synthetic $< --repeat $(REPEAT) --out $@
$(OUT)/%/g2r2.json: $(OUT)/%/g2r.samples.safetensors
	$(run) $@ inflate --real $(data) --synthetic $< --repeat $(REPEAT) --out $@
$(OUT)/%/union.safetensors: $(OUT)/%/union.json
	$(ssl) --data $< --steps $(STEPS)
$(OUT)/%/sequence.safetensors: $(OUT)/%/sequence.json
	$(ssl) --data $< --steps $(STEPS)
$(OUT)/%/g2r.safetensors: $(OUT)/%/g2r.json
	$(ssl) --data $< --steps $(STEPS)
$(OUT)/%/g2r2.safetensors: $(OUT)/%/g2r2.json
	$(ssl) --data $< --steps $(STEPS)
$(OUT)/%/synthetic.safetensors: $(OUT)/%/real.samples.safetensors
	$(ssl) --data $< --steps $(STEPS)
$(OUT)/%/pairs.safetensors: $(OUT)/%/union.json
	$(ssl) --data $< --steps $(STEPS) --views real:1g,synthetic:1g
$(OUT)/%/mixed.safetensors: $(OUT)/%/union.json
	$(ssl) --data $< --steps $(STEPS) --views mixed:1g,mixed:1g --synthetic-probability $(PROBABILITY)
$(OUT)/%/psl.safetensors: $(OUT)/%/g2r.json $(OUT)/%/real.z.safetensors
	$(ssl) --data $< --features $(word 2,$^) --stage psl:$(PSL_STEPS) --stage simclr:$(shell echo $$(($(STEPS) - $(PSL_STEPS))))
$(OUT)/%/psl60.safetensors: $(OUT)/%/g2r.json $(OUT)/%/real.z.safetensors
	$(ssl) --data $< --features $(word 2,$^) --stage psl:$(PSL_STEPS) --stage simclr:$(shell echo $$(($(SHORT_STEPS) - $(PSL_STEPS))))

# Scores. Few-label probes: ten draws; the setting of the classifier is chosen on the training images.
few = $(run) $@ probe --encoder $< --train $(TRAIN) --val $(TRAIN) --test $(TEST) --seeds 10 --k 1,5 --json --predictions $(@:json=csv)
$(OUT)/%.probe1.json: $(OUT)/%.safetensors
	$(few) --shots 1
$(OUT)/%.probe5.json: $(OUT)/%.safetensors
	$(few) --shots 5
$(OUT)/%.probe20.json: $(OUT)/%.safetensors
	$(few) --shots 20
$(OUT)/%.probe.json: $(OUT)/%.safetensors
	$(run) $@ probe --encoder $< --train $(TRAIN) --test $(TEST) --k 5 --json --predictions $(@:json=csv)
$(OUT)/%.fd.json: $(OUT)/%.safetensors $(OUT)/judge.safetensors
	$(run) $@ fid --reference $(TRAIN) --samples $< --extractor $(word 2,$^) --metrics fd,precision-recall,copies --json

collect = python3 $(HERE)collect.py --out $@ --setting $(SETTING) --steps $(STEPS)
$(RESULTS)/%.samples.json: $(OUT)/%.samples.fd.json
	$(collect) $^
$(RESULTS)/%.json: $(foreach probe,$(PROBES),$(OUT)/%.$(probe).json)
	$(collect) $^

# Raw pixels as features: what an encoder has to beat. No seed but that of the labels.
$(OUT)/raw.train.safetensors: $(made)
	$(run) $@ python3 $(HERE)pixels.py $(TRAIN) $@
$(OUT)/raw.test.safetensors: $(made)
	$(run) $@ python3 $(HERE)pixels.py $(TEST) $@
raw := $(OUT)/raw.train.safetensors $(OUT)/raw.test.safetensors
few_raw = $(run) $@ probe --train $< --val $< --test $(word 2,$^) --seeds 10 --k 1,5 --json --predictions $(@:json=csv)
$(OUT)/raw.probe1.json: $(raw)
	$(few_raw) --shots 1
$(OUT)/raw.probe5.json: $(raw)
	$(few_raw) --shots 5
$(OUT)/raw.probe20.json: $(raw)
	$(few_raw) --shots 20
$(OUT)/raw.probe.json: $(raw)
	$(run) $@ probe --train $< --test $(word 2,$^) --k 5 --json --predictions $(@:json=csv)
