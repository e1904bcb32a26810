CLAIM := When every generation is trained on samples of the previous one only, images degrade later with CORE
PAPER := CORE, Figure 6: on CIFAR-10 with real images kept in the loop, CORE degrades less; here the loop is fully synthetic
RULE := in generation 3, the distance with CORE is below that without
ARMS := none.samples loop2.samples loop3.samples real.samples core2.samples core3.samples
COMPARE := core3.samples<loop3.samples:corrected core2.samples<loop2.samples:corrected core3.samples>loop3.samples:recall
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk

# Without CORE: generators without a condition.
$(OUT)/%/loop2.g.safetensors: $(OUT)/%/none.samples.safetensors
	$(run) $@ train-gen $(GEN) --seed $(seed) --data $< --steps $(GEN_STEPS) --out $@
$(OUT)/%/loop3.g.safetensors: $(OUT)/%/loop2.samples.safetensors
	$(run) $@ train-gen $(GEN) --seed $(seed) --data $< --steps $(GEN_STEPS) --out $@
$(OUT)/%/loop2.samples.safetensors: $(OUT)/%/loop2.g.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --num $(NUM) --out $@
$(OUT)/%/loop3.samples.safetensors: $(OUT)/%/loop3.g.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --num $(NUM) --out $@

# With CORE: in each generation an encoder is trained on the samples too, and the generator is conditioned on it.
$(OUT)/%/core2.safetensors: $(OUT)/%/real.samples.safetensors
	$(ssl) --data $< --steps $(STEPS)
$(OUT)/%/core3.safetensors: $(OUT)/%/core2.samples.safetensors
	$(ssl) --data $< --steps $(STEPS)
$(OUT)/%/core2.z.safetensors: $(OUT)/%/core2.safetensors $(OUT)/%/real.samples.safetensors
	$(run) $@ extract --data $(word 2,$^) --encoder $< --out $@
$(OUT)/%/core3.z.safetensors: $(OUT)/%/core3.safetensors $(OUT)/%/core2.samples.safetensors
	$(run) $@ extract --data $(word 2,$^) --encoder $< --out $@
$(OUT)/%/core2.g.safetensors: $(OUT)/%/core2.z.safetensors $(OUT)/%/real.samples.safetensors
	$(run) $@ train-gen $(GEN) --seed $(seed) --data $(word 2,$^) --features $< --steps $(GEN_STEPS) --out $@
$(OUT)/%/core3.g.safetensors: $(OUT)/%/core3.z.safetensors $(OUT)/%/core2.samples.safetensors
	$(run) $@ train-gen $(GEN) --seed $(seed) --data $(word 2,$^) --features $< --steps $(GEN_STEPS) --out $@
$(OUT)/%/core2.samples.safetensors: $(OUT)/%/core2.g.safetensors $(OUT)/%/core2.z.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --features $(word 2,$^) --num $(NUM) --order shuffle --out $@
$(OUT)/%/core3.samples.safetensors: $(OUT)/%/core3.g.safetensors $(OUT)/%/core3.z.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --features $(word 2,$^) --num $(NUM) --order shuffle --out $@
