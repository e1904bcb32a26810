CLAIM := More variants of an image help pairs, and more guidance helps, then hurts
PAPER := MixDiff, Figure 6: pairs are about equal for guidance 2 to 8 and slightly worse for 12; GenSSL samples 10 variants
RULE := pairs with 8 variants beat pairs with 1, with five labels a class
ARMS := real pairs-n1 pairs-n8 pairs-g1.5 pairs-g2 pairs-g4
COMPARE := pairs-n8>pairs-n1:probe@5 pairs-n1>real:probe@5 pairs-n8>real:probe@5 pairs-g1.5>pairs-n1:probe@5 pairs-g2>pairs-n1:probe@5 pairs-g4>pairs-n1:probe@5
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk

$(OUT)/%/pairs-n8.images.safetensors: $(OUT)/%/real.g.safetensors $(OUT)/%/real.z.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --features $(word 2,$^) --per-row 8 --out $@
# One variant an image, with guidance: pairs-gG.
define guided
$$(OUT)/%/pairs-$(1).images.safetensors: $$(OUT)/%/real.g.safetensors $$(OUT)/%/real.z.safetensors
	$$(run) $$@ sample $$(SAMPLE) --seed $$(seed) --ckpt $$< --features $$(word 2,$$^) --guidance $(2) --out $$@
endef
$(eval $(call guided,n1,1))
$(foreach g,1.5 2 4,$(eval $(call guided,g$(g),$(g))))
$(OUT)/%.union.json: $(OUT)/%.images.safetensors
	$(run) $@ inflate --real $(data) --synthetic $< --out $@
define pairs
$$(OUT)/%/pairs-$(1).safetensors: $$(OUT)/%/pairs-$(1).union.json
	$$(ssl) --data $$< --steps $$(STEPS) --views real:1g,synthetic:1g
endef
$(foreach name,n1 n8 g1.5 g2 g4,$(eval $(call pairs,$(name))))
