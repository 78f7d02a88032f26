# The sweeps of RESULTS on the embedded model (not those of flows, tasks, classifiers and vectors), on a second one of another
# seed too, and their tables:
#   make -f experiments/results/sweeps.mk -j2 SECOND=FOLDER
# The same command goes on where it stopped. Without SECOND it is one model. Each sweep is a process of one thread.
PY ?= .venv/bin/python
ICONS ?= icons
CACHE ?= outputs/cache
OUT ?= outputs/results
SECOND ?=
export OMP_NUM_THREADS = 1
# glibc gives large tensors back to the system after use, and their pages are faulted in anew: 5 % of a pass of 40 rows
export MALLOC_MMAP_THRESHOLD_ = 4294967296
export MALLOC_TRIM_THRESHOLD_ = 17179869184

SWEEPS = multistage_steps multistage_scale multistage_captions multistage_inner segfree_vs_cfg segfree_a segfree_t_s segfree_strength \
         segfree_layers segfree_style composition implied_segmentation segfree_exact segfree_motivation samplers_spacing samplers inversion

# settings, fewer steps or pictures than the yaml's among them
OBJECTS = dtype=bfloat16 maps=false references=$(OUT)/references
# at the model's own scale, as 7.5 is Stable Diffusion's
multistage_steps = $(OBJECTS) n=40 guidance.inner.scale=3
multistage_scale = $(OBJECTS)
multistage_captions = $(OBJECTS)
multistage_inner = $(OBJECTS)
# a further part of the same sweep
more_multistage_inner = method=cfg scale=1.5,4,5,10,15
composition = $(OBJECTS)
SEGFREE = dtype=bfloat16 maps=false sampler.steps=25
segfree_vs_cfg = $(SEGFREE)
segfree_a = $(SEGFREE)
segfree_t_s = $(SEGFREE)
segfree_strength = $(SEGFREE)
segfree_layers = $(SEGFREE)
segfree_style = $(SEGFREE)
samplers = count=8 batch_size=8 bootstrap.resamples=300
# on other captions than samplers, whose spacings it chooses
samplers_spacing = prompts=emoji_two_coloured prompts.count=4 prompts.scenes_seed=1 batch_size=4 bootstrap.resamples=200 \
                   method=ddim,euler,heun,lms,plms,dpmpp_2m,unipc measures.emoji.convergence.steps=100
inversion = study.count=6 bootstrap.resamples=300

# of the second model the cells alone that claims need; `also` is a further part of the same sweep
second_multistage_steps = composition=joint,0,6,8,10,14,20
second_multistage_scale = method=late,early_segmentation_free scale=7.5
also_multistage_scale = method=joint,early scale=1.5,3,5,7.5,10
second_multistage_captions = pair=dragon_fish,cat_dog,light_bulb_pear,maple_leaf_heart
second_multistage_inner = pair=dragon_fish,cat_dog
also_multistage_inner = pair=dragon_fish,cat_dog $(more_multistage_inner)
second_segfree_vs_cfg = method=segmentation_free,words_only,gentle scale=3,7.5
also_segfree_vs_cfg = method=cfg scale=1.5,2,3,4.5,6,7.5,10,14
second_segfree_a = guidance.sf_scale=0,10,20
second_segfree_t_s = guidance.cfg_steps=0.0,0.5,1.0
second_segfree_strength = guidance.sf_strength=2,5
second_segfree_layers = where=all,segmenting,others scale=7.5
also_segfree_layers = where=cfg scale=1.5,3,4.5,7.5
second_segfree_style = guidance.cfg_steps=0.0,0.5,1.0
second_samplers = method=euler,heun,dpmpp_2m,unipc evaluations=10,20,100 scale=3,7.5
second_samplers_spacing = spacing=leading,karras
second_inversion = guided=none,cfg_7.5,cfg_pp_0.6

ABLATE = $(PY) -m experiments.ablate -m experiment=$* device=cpu icons=$(ICONS) cache=$(CACHE) $($*)

results: $(SWEEPS:%=$(OUT)/first/%.done) $(if $(SECOND),$(SWEEPS:%=$(OUT)/second/%.done))
	$(PY) -m experiments.findings sweeps=$(OUT)/first second=$(OUT)/second

$(OUT)/references:
	rm -rf $@.part
	$(PY) -m experiments.data.reference out=$@.part concepts=all count=40 icons=$(ICONS) cache=$(CACHE)
	mv $@.part $@

$(OUT)/first/%.done: | $(OUT)/references
	$(ABLATE) out=$(OUT)/first/$*
	$(if $(more_$*),$(ABLATE) out=$(OUT)/first/$* $(more_$*))
	touch $@

$(OUT)/second/%.done: | $(OUT)/references
	$(ABLATE) out=$(OUT)/second/$* model.path=$(SECOND) $(second_$*)
	$(if $(also_$*),$(ABLATE) out=$(OUT)/second/$* model.path=$(SECOND) $(also_$*))
	touch $@

.PHONY: results
