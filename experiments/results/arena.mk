# The arena of RESULTS: the full league on the embedded model, pairs of guidances on it, defaults on a second model, and the page:
#   make -f experiments/results/arena.mk -j2 SECOND=FOLDER WEAK=FOLDER
# WEAK is a weaker network, for autoguidance; without one, or without SECOND, they are left out. The same command goes on where it stopped. Each shard is a process of one thread.
PY ?= .venv/bin/python
ICONS ?= icons
CACHE ?= outputs/cache
OUT ?= outputs/arena
export OMP_NUM_THREADS = 1
# as in sweeps.mk
export MALLOC_MMAP_THRESHOLD_ = 4294967296
export MALLOC_TRIM_THRESHOLD_ = 17179869184

# as strong as this model wants it, as 7.5 is for Stable Diffusion
ARENA = $(PY) -m experiments.arena nominal=4.5 device=cpu icons=$(ICONS) cache=$(CACHE)
ZOO = $(if $(WEAK),networks.weak=$(WEAK))

arena: $(OUT)/full.done $(OUT)/combined.done $(if $(SECOND),$(OUT)/second.done)
	$(ARENA) $(ZOO) draw=false out=$(OUT)/full $(if $(SECOND),second=$(OUT)/second)
	$(ARENA) methods=combined league=second draw=false out=$(OUT)/combined

$(OUT)/full.%of2: | $(OUT)
	$(ARENA) $(ZOO) out=$(OUT)/full shard=$*/2
	touch $@

$(OUT)/second.%of2: | $(OUT)/full.done
	$(ARENA) $(ZOO) league=second model.path=$(SECOND) out=$(OUT)/second shard=$*/2
	touch $@

# the curve is the full league's
$(OUT)/combined.%of2: | $(OUT)/combined/cells
	$(ARENA) methods=combined league=second out=$(OUT)/combined shard=$*/2
	touch $@

$(OUT)/combined/cells: | $(OUT)/full.done
	mkdir -p $@.part
	cp -r $(OUT)/full/cells/cfg $(OUT)/full/cells/tuning $@.part
	mv $@.part $@

$(OUT)/%.done: $(OUT)/%.0of2 $(OUT)/%.1of2
	touch $@

$(OUT):
	mkdir -p $@

.PHONY: arena
.SECONDARY:
