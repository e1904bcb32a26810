CLAIM := Where captions say more than classes, images of one caption teach more than views of one image or images of one class
PAPER := SynCLR, Table 5: captions 75.3, classes 71.9, single images 63.6 on ImageNet
RULE := groups beats classes with five labels for each digit and color
SETTING := digits-colors
ARMS := groups images classes untrained
COMPARE := groups>classes:probe@5 groups>images:probe@5 groups>classes:knn5@5 groups>images:knn5@5
PROBES := probe5 probe
TRAIN = $(OUT)/train.safetensors
TEST = $(OUT)/test.safetensors
made = $(TRAIN)
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk

$(TRAIN):
	$(run) $@ python3 $(HERE)colors.py $(OUT)
# All encoders see the same synthetic images, and none of the real ones.
$(OUT)/%/captioned.g.safetensors: $(TRAIN)
	$(run) $@ train-gen $(GEN) --seed $(seed) --data $< --captions $(OUT)/train.jsonl --steps $(GEN_STEPS) --out $@
$(OUT)/%/captioned.samples.safetensors: $(OUT)/%/captioned.g.safetensors
	$(run) $@ sample $(SAMPLE) --seed $(seed) --ckpt $< --captions $(OUT)/captions.jsonl --per-row 45 --guidance 2 --out $@
alike = $(ssl) --method stablerep --data $< --steps $(STEPS)
$(OUT)/%/groups.safetensors: $(OUT)/%/captioned.samples.safetensors
	$(alike) --set label-by=group --images-per-group 4 --views 1g --batch-size 128
$(OUT)/%/classes.safetensors: $(OUT)/%/captioned.samples.safetensors
	$(alike) --set label-by=class --images-per-group 1 --views 1g --batch-size 128
$(OUT)/%/images.safetensors: $(OUT)/%/captioned.samples.safetensors
	$(alike) --set label-by=image --images-per-group 1 --views 2g --batch-size 64
