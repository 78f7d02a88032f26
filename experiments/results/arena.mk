# The arena of RESULTS: the full league on the embedded model, pairs of guidances on it, defaults on a second model, and the page:
#   make -f experiments/results/arena.mk -j2 SECOND=FOLDER WEAK=FOLDER
# SECOND is a model of another seed, WEAK a weaker network, for autoguidance: the second after 1,084 of its steps,
#   python -m experiments.train part=medium/unet seed=1 part.steps=1084 part.cooldown=0 autoencoder=ldm/weights/emoji/vae \
#     clip=ldm/weights/emoji_sixteen_clip out=FOLDER
# Without them their part is left out. The same command goes on where it stopped. Each shard is a process of one thread.
# `scores` keeps all that verdicts are made of, without the pictures; `restore` brings it back.
PY ?= .venv/bin/python
ICONS ?= icons
CACHE ?= outputs/cache
OUT ?= outputs/arena
PAGE = experiments/results/RESULTS.md
SCORES = experiments/results/arena.tar.xz
export OMP_NUM_THREADS = 1
# as in sweeps.mk
export MALLOC_MMAP_THRESHOLD_ = 4294967296
export MALLOC_TRIM_THRESHOLD_ = 17179869184

# as strong as this model wants it, as 7.5 is for Stable Diffusion
ARENA = $(PY) -m experiments.arena nominal=4.5 device=cpu icons=$(ICONS) cache=$(CACHE)
PAIRS = $(ARENA) methods=combined league=combined out=$(OUT)/combined
ZOO = $(if $(WEAK),networks.weak=$(WEAK))
# methods that pairs are made of
PARTS = segmentation_free apg tcfg cfg_zero mambo rescale interval pag temperature

arena: $(OUT)/full.done $(OUT)/combined.done $(if $(SECOND),$(OUT)/second.done)
	$(ARENA) $(ZOO) draw=false out=$(OUT)/full $(if $(SECOND),second=$(OUT)/second) results=$(PAGE)
	$(PAIRS) draw=false results=$(PAGE)

$(OUT)/full.%of2: | $(OUT)
	$(ARENA) $(ZOO) out=$(OUT)/full shard=$*/2
	touch $@

$(OUT)/second.%of2: | $(OUT)/full.done
	$(ARENA) $(ZOO) league=second model.path=$(SECOND) out=$(OUT)/second shard=$*/2
	touch $@

# the curve and the parts are the full league's
$(OUT)/combined.%of2: | $(OUT)/combined/cells
	$(PAIRS) shard=$*/2
	touch $@

$(OUT)/combined/cells: | $(OUT)/full.done
	rm -rf $@.part && mkdir -p $@.part
	cp -r $(addprefix $(OUT)/full/cells/,cfg tuning) $@.part
	for part in $(PARTS); do mkdir $@.part/$$part && cp -r $(OUT)/full/cells/$$part/defaults $@.part/$$part; done
	mv $@.part $@

$(OUT)/%.done: $(OUT)/%.0of2 $(OUT)/%.1of2
	touch $@

$(OUT):
	mkdir -p $@

# of finished cells alone: the pictures that the others would go on from are not kept
scores:
	cd $(OUT) && for cell in */cells/*/*; do test -f $$cell/cell.json || echo $$cell; done > unfinished
	tar --sort=name --exclude-from=$(OUT)/unfinished --owner=0 --group=0 --numeric-owner --mtime=@0 --exclude=images --exclude=own --exclude=other \
	  --exclude=.lock --exclude='*.png' --exclude='*.html' --exclude=verdicts.json --exclude='*.svg' --exclude='*.md' \
	  -C $(OUT) -cf - $(notdir $(wildcard $(OUT)/full $(OUT)/combined $(OUT)/second)) | xz -9 > $(SCORES).part
	mv $(SCORES).part $(SCORES)
	rm $(OUT)/unfinished

restore: | $(OUT)
	tar -C $(OUT) -xf $(SCORES)

.PHONY: arena scores restore
.SECONDARY:
