# make demo    methods side by side, judged                make check   lint, types and the quick tests (80 seconds)
# make lint    ruff and mypy                              make test    the test suite (8 minutes on two cores)
# make nightly every test, fuzzing, faults (an hour)      make tables  the pictures and tables under docs/
# make stage1 the adapter of ckpt/pocket-stage1 (an hour) make study  adapters of every feature, probed (hours)
# make stage2 ckpt/pocket-dpt and its control (an hour)   make sweep  ways to correct (an hour)
# make results all methods in one table, docs/results/table (hours)   make pictures  docs/results/sampling/trace.png
# make results QUICK=1  the same columns for fewer prompts (three minutes)   make results-unet  docs/results/benchmark
# make results-sd MODEL=... SUITE=lmd|sr2d|geneval=FILE  the same for your model, on a GPU
# make reader  the second judge of pocket pictures, runs/reader/reader (a quarter of an hour on one core)
# make stage1-mmdit stage2-mmdit results-mmdit            the same on ckpt/pocket-mmdit (docs/results/mmdit.md)
# make ipr    two rounds of IPR, their sheet, and the ablations (hours)
# make hps    preference data, classifier, selection, tuning, table (half an hour on one core)
# make sld    SLD after base and after IPR, with a noisy detector, by instructions (an hour on one core)
# make docs   the documentation site in build/site
# make wheel  dist/*.whl and dist/*.tar.gz, with the embedded models
# make fuzz   broken input for every parser (10 minutes) make faults  kills, lost processes, bad disks (half an hour)
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
export TORCH_INDEX TORCH_BUILD

.PHONY: reader results-unet results-sd docs ipr hps sld faults demo check test nightly lint tables stage1 stage2 results sweep pictures study environment dev-environment

demo: environment
	$(RUN) -m dpt compare --pretrained_model_name_or_path ckpt/pocket-mmdit

# Each test process has one thread, so as many run as there are cores. Compiled modules are kept, whatever the
# environment says: every one of these processes, and those that they start, imports the same.
PYTEST = PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest -q -n auto --dist worksteal

# Folders whose tests are all slow are not even imported.
check: lint
	$(PYTEST) -m "not slow and not nightly" $(foreach slow,cli faults fuzz pocket checkpoints detect lora,--ignore=tests/$(slow))

test: dev-environment
	$(PYTEST) -m "not nightly"

nightly: dev-environment fuzz faults
	$(PYTEST)

lint: dev-environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

tables: environment
	$(RUN) -m dpt pocket measure --prompts 200 --out docs/results/pocket
	$(RUN) -m dpt scenes check --num 1000 --seed 7 --world pocket --vae ckpt/pocket --json docs/results/oracle/pocket.json
	$(RUN) -m dpt scenes check --num 1000 --seed 7 --world full --json docs/results/oracle/full.json

# Grounding is learnt first and alone: it takes many examples to begin, and one pair an example instead of six.
ADAPTER = --mixed_precision bf16 --adapter_precision bf16 --code_placement sequence --dropout 0 --dim_feedforward 512 \
	--num_queries_rec 30 --learning_rate 2e-4 --lr_warmup_steps 50 --logging_steps 50 --checkpoints_total_limit 1
GROUNDING = $(ADAPTER) --train_batch_size 48 --i2t_loss_coef 0 --t2i_loss_coef 0
BOTH = $(ADAPTER) --train_batch_size 16 --lr_scheduler linear

stage1: environment
	$(RUN) train_stage1.py $(GROUNDING) --max_train_steps 4500 --output_dir runs/stage1 --run_name grounding
	$(RUN) train_stage1.py $(BOTH) --max_train_steps 2400 --output_dir runs/stage1 --run_name both \
		--qformer_ckpt runs/stage1/grounding

# Stage 2 and its control: same scenes, noise, steps, rank and rate. The denoising loss weighs 50, since the gradients
# that the others send into the LoRA are so much larger.
TUNING = --mixed_precision bf16 --train_batch_size 16 --max_train_steps 1000 --lora_rank 8 --lora_alpha 40 \
	--learning_rate 1e-4 --lr_scheduler linear --lr_warmup_steps 20 --logging_steps 50 --checkpoints_total_limit 1 \
	--output_dir runs/stage2
stage2: environment
	$(RUN) train_stage2.py $(TUNING) --run_name dpt --adapter_precision bf16 --qformer_ckpt ckpt/pocket-stage1 --mse_loss_coef 50
	$(RUN) train_stage2.py $(TUNING) --run_name control --plain_lora

# The one table: all methods on the transformer pocket. The same command continues it; PROCESSES share the images.
# A second judge reads the same images; no method was trained on what it reads, or selects by it. PER_PROMPT=4
# continues a run of one image per prompt.
PROCESSES ?= 2
PER_PROMPT ?= 1
ON_ALL = $(ON_MMDIT) --num_timesteps 20 --clip ckpt/pocket/clip
SHARED = $(VENV)/bin/torchrun --nproc_per_node $(PROCESSES) -m dpt bench
ifdef QUICK
QUICK_PROMPTS ?= 12
results: environment
	$(SHARED) run base control dpt corrected best4 ipr base+sld $(ON_ALL) --prompts $(QUICK_PROMPTS) --per_prompt 2 \
		--out runs/quick
	$(SHARED) score runs/quick --detector reader --out runs/quick/by-reader
	$(RUN) -m dpt bench report runs/quick --also control --second runs/quick/by-reader --reference scenes
else
TABLE = runs/table
ROWS ?= base control control-long dpt corrected best4 best8 distilled ipr1 ipr ipr-dpt hps base+sld corrected+sld
# control and dpt, where this call or an earlier one draws them.
CONTROLS = $(sort $(filter control dpt,$(ROWS) $(notdir $(basename $(wildcard $(TABLE)/*.jsonl)))))
results: environment
	$(SHARED) run $(if $(filter base,$(ROWS)),,base) $(ROWS) $(ON_ALL) --per_prompt $(PER_PROMPT) --out $(TABLE)
	$(SHARED) score $(TABLE) --detector reader --out $(TABLE)/by-reader
	$(RUN) -m dpt bench report $(TABLE) $(if $(CONTROLS),--also $(CONTROLS)) --second $(TABLE)/by-reader \
		--reference scenes --out docs/results/table
	$(RUN) tools/readme_table.py
endif

# The older UNet pocket (docs/results/stage2.md).
results-unet: environment
	$(RUN) -m dpt bench run base control dpt corrected best4 --mixed_precision bf16 --clip ckpt/pocket/clip --out runs/results
	$(RUN) -m dpt bench score runs/results --detector reader --out runs/results/by-reader
	$(RUN) -m dpt bench report runs/results --also control dpt --second runs/results/by-reader --reference scenes \
		--out docs/results/benchmark

reader: environment
	$(RUN) -m dpt detect train-reader --output_dir runs/reader
	$(RUN) -m dpt scenes check --detector runs/reader/reader --num 1000 --seed 7 --world pocket --vae ckpt/pocket-mmdit \
		--json runs/reader/pocket.json

# Any model and suite. METHODS adds checkpoints, as "mine=FOLDER"; LIMIT=20 takes 20 prompts of each category;
# PROCESSES=2 shares the images between two GPUs; REFERENCE is a folder of photographs for the Fréchet distance.
SUITE ?= lmd
SD_FILE = $(basename $(notdir $(word 2,$(subst =, ,$(SUITE)))))
SD_OUT = runs/sd/$(subst /,-,$(MODEL:/=))-$(firstword $(subst =, ,$(SUITE)))$(SD_FILE:%=-%)$(if $(LIMIT),-$(LIMIT))
SD_CLIP ?= openai/clip-vit-large-patch14
SD_SECOND ?= grounding-dino
SD_COLOURS = $(if $(filter geneval=%,$(SUITE)),--colours $(SD_CLIP))
results-sd: PROCESSES = 1
results-sd: environment
	@test -n "$(MODEL)" || { echo "give MODEL, a folder or hub id, and SUITE: lmd, sr2d or geneval=FILE"; exit 2; }
	$(SHARED) run base $(METHODS) --suite $(SUITE) --pretrained_model_name_or_path $(MODEL) --per_prompt 4 \
		$(if $(LIMIT),--prompts $(LIMIT)) $(SD_COLOURS) --clip $(SD_CLIP) --out $(SD_OUT)
	$(SHARED) score $(SD_OUT) --detector $(SD_SECOND) $(SD_COLOURS) --out $(SD_OUT)/again
	$(RUN) -m dpt bench report $(SD_OUT) --second $(SD_OUT)/again --encoder $(SD_CLIP) \
		$(if $(REFERENCE),--reference $(REFERENCE))

# The transformer pocket. Its scenes are on disk with cached latents: encoding them costs as much as a training step.
MMDIT = runs/mmdit
ON_MMDIT = --pretrained_model_name_or_path ckpt/pocket-mmdit --mixed_precision bf16
MMDIT_STAGE1 = $(ON_MMDIT) --data_root $(MMDIT)/scenes --unet_feature block1_block3 --adapter_precision bf16 \
	--code_placement sequence --dropout 0 --hidden_dim 192 --nheads 6 --dim_feedforward 384 --num_queries_rec 16 \
	--validation_steps 0 --output_dir $(MMDIT)
MMDIT_TUNING = $(ON_MMDIT) --data_root $(MMDIT)/scenes --train_batch_size 16 --lora_rank 16 --lora_alpha 16 \
	--learning_rate 4e-3 --lr_scheduler linear --lr_warmup_steps 20 --logit_mean -0.8 --logit_std 1.2 \
	--validation_steps 0 --output_dir $(MMDIT)

scenes-mmdit: environment
	test -d $(MMDIT)/scenes || $(RUN) -m dpt scenes export --out $(MMDIT)/scenes --num 5000 --val 200 --format png
	$(RUN) -m dpt cache $(MMDIT)/scenes --pretrained_model_name_or_path ckpt/pocket-mmdit

BLOCKS = block0 block1 block2 block3 block4
features-mmdit: scenes-mmdit
	$(RUN) benchmarks/features.py --features $(BLOCKS) --data_root $(MMDIT)/scenes --out $(MMDIT)/features
	$(RUN) -m dpt probe $(BLOCKS:%=$(MMDIT)/features/%/adapter) $(ON_MMDIT) --num 200 --timesteps 500 --out $(MMDIT)/blocks

# Two short runs of all losses, then grounding alone until it has begun, then all losses again.
stage1-mmdit: scenes-mmdit
	$(RUN) train_stage1.py $(MMDIT_STAGE1) --train_batch_size 8 --max_train_steps 412 --learning_rate 5e-4 \
		--lr_warmup_steps 50 --run_name stage1a
	$(RUN) train_stage1.py $(MMDIT_STAGE1) --train_batch_size 8 --max_train_steps 320 --learning_rate 4e-4 \
		--lr_scheduler linear --seed 2 --qformer_ckpt $(MMDIT)/stage1a --run_name stage1b
	$(RUN) train_stage1.py $(MMDIT_STAGE1) --train_batch_size 48 --max_train_steps 2830 --learning_rate 4e-4 \
		--lr_warmup_steps 50 --i2t_loss_coef 0 --t2i_loss_coef 0 --qformer_ckpt $(MMDIT)/stage1b --run_name grounding
	$(RUN) train_stage1.py $(MMDIT_STAGE1) --train_batch_size 16 --max_train_steps 1600 --learning_rate 4e-4 \
		--lr_scheduler linear --lr_warmup_steps 50 --seed 3 --qformer_ckpt $(MMDIT)/grounding --run_name stage1

# More grounding, then all losses again: 65.0 % in grounding instead of 62.8.
grounding-mmdit: scenes-mmdit
	$(RUN) train_stage1.py $(MMDIT_STAGE1) --train_batch_size 48 --max_train_steps 900 --learning_rate 4e-4 \
		--lr_warmup_steps 50 --i2t_loss_coef 0 --t2i_loss_coef 0 --seed 5 --qformer_ckpt ckpt/pocket-mmdit-stage1 \
		--run_name more-grounding
	$(RUN) train_stage1.py $(MMDIT_STAGE1) --train_batch_size 16 --max_train_steps 400 --learning_rate 4e-4 \
		--lr_scheduler linear --lr_warmup_steps 50 --seed 6 --qformer_ckpt $(MMDIT)/more-grounding \
		--run_name grounding-both
	$(RUN) -m dpt probe $(MMDIT)/grounding-both/adapter $(ON_MMDIT) --num 500 --timesteps 500 --out $(MMDIT)/grounding-probe

# Three training seeds each: plain400s0, dpt1600s1 and so on. Then the plain LoRA in the time of dpt1600, control-long.
stage2-mmdit: scenes-mmdit
	for seed in 0 1 2; do for steps in 400 1600; do \
		$(RUN) train_stage2.py $(MMDIT_TUNING) --plain_lora --seed $$seed --max_train_steps $$steps \
			--run_name plain$${steps}s$$seed || exit 1; \
		$(RUN) train_stage2.py $(MMDIT_TUNING) --unet_feature block1_block3 --adapter_precision bf16 --dropout 0 \
			--only_train_lora --mse_loss_coef 50 --qformer_ckpt $(MMDIT)/stage1 --seed $$seed --max_train_steps $$steps \
			--run_name dpt$${steps}s$$seed || exit 1; \
	done; done
	$(RUN) train_stage2.py $(MMDIT_TUNING) --plain_lora --max_train_steps 8000 --run_name plain8000s0

# Stage 2 with the flags of the published command, but fewer steps: it changes nothing, see docs/results/mmdit.md.
published-mmdit: scenes-mmdit
	$(RUN) train_stage2.py $(ON_MMDIT) --data_root $(MMDIT)/scenes --unet_feature block1_block3 \
		--adapter_precision bf16 --qformer_ckpt $(MMDIT)/stage1 --train_batch_size 16 --lora_rank 4 --mse_loss_coef 1 \
		--lr_scheduler cosine --max_train_steps 400 --validation_steps 0 --output_dir $(MMDIT) --run_name published

# The LoRA of DPT learns from the best of four of its own images, of other prompts.
distilled-mmdit: environment
	$(RUN) -m dpt bench run best4 $(ON_MMDIT) --num_timesteps 20 --per_prompt 1 --prompts 100 --seed 11 --out $(MMDIT)/own
	$(RUN) tools/caption_images.py $(MMDIT)/own best4
	$(RUN) -m dpt ipr train $(MMDIT)/own/best4 --ckpt ckpt/pocket-mmdit-dpt $(ON_MMDIT) --out $(MMDIT)/distilled \
		--lora_rank 16 --lora_alpha 16 --max_train_steps 300 --learning_rate 1e-3 --lr_scheduler linear \
		--lr_warmup_steps 20 --logit_mean -0.8 --logit_std 1.2

MMDIT_BENCH = $(ON_MMDIT) --categories single binding count spatial negation --num_timesteps 20
FUSED = target=fused,norm=rms
TUNED = plain400 dpt400 plain1600 dpt1600
results-mmdit: environment
	$(RUN) -m dpt bench run base $(foreach n,$(TUNED),$(n)=$(MMDIT)/$(n)s0 $(n)b=$(MMDIT)/$(n)s1) \
		corrected=$(MMDIT)/dpt1600s0,factor=0.02,$(FUSED),end=0.6 \
		correctedb=$(MMDIT)/dpt1600s1,factor=0.02,$(FUSED),end=0.6 $(MMDIT_BENCH) --prompts 300 --per_prompt 1 --out $(MMDIT)/bench
	$(RUN) -m dpt bench score $(MMDIT)/bench --detector reader --out $(MMDIT)/bench/by-reader
	$(RUN) -m dpt bench report $(MMDIT)/bench --also plain400x2 plain1600x2 dpt1600x2 --second $(MMDIT)/bench/by-reader \
		--seeds $(foreach n,$(TUNED) corrected,$(n)x2=$(n),$(n)b)
	$(RUN) -m dpt bench run base f02=$(MMDIT)/stage1,factor=0.02,$(FUSED),end=0.6 \
		f05late=$(MMDIT)/stage1,factor=0.05,$(FUSED),start=0.1,end=0.7 best4=$(MMDIT)/stage1,candidates=4 \
		$(MMDIT_BENCH) --prompts 60 --per_prompt 1 --seed 1 --out $(MMDIT)/trials
	$(RUN) -m dpt bench score $(MMDIT)/trials --detector reader --out $(MMDIT)/trials/by-reader
	$(RUN) -m dpt bench report $(MMDIT)/trials --second $(MMDIT)/trials/by-reader

# Three trainings each of the control, DPT and IPR, four images per prompt; the first of each is the shipped checkpoint.
OTHER_SEEDS = $(foreach n,1 2,control-s$(n)=$(MMDIT)/plain1600s$(n) dpt-s$(n)=$(MMDIT)/dpt1600s$(n) \
	ipr-s$(n)=runs/ipr-seed$(n)/round-1/train)
results-seeds: stage2-mmdit
	for seed in 1 2; do $(IPR) --seed $$seed --out runs/ipr-seed$$seed || exit 1; done
	$(RUN) -m dpt bench run base control dpt ipr $(OTHER_SEEDS) $(MMDIT_BENCH) --prompts 300 --out $(MMDIT)/seeds
	$(RUN) -m dpt bench report $(MMDIT)/seeds --also controlx3 dptx3 \
		--seeds $(foreach n,control dpt ipr,$(n)x3=$(n),$(n)-s1,$(n)-s2)

# Images of the model and of IPR, then each corrected; more candidates for the best of n; instructions.
SLD = runs/sld
IPR_METHOD = ipr=ckpt/pocket-mmdit-ipr
sld: environment
	$(RUN) -m dpt bench run base $(IPR_METHOD) corrected $(ON_MMDIT) --num_timesteps 20 --per_prompt 1 --out $(SLD)/images
	$(RUN) -m dpt bench run base $(ON_MMDIT) --num_timesteps 20 --prompts 100 --per_prompt 3 --out $(SLD)/candidates
	$(RUN) -m dpt sld measure $(SLD)/images --candidates $(SLD)/candidates --out $(SLD)/base
	$(RUN) -m dpt sld measure $(SLD)/images --method $(IPR_METHOD) --out $(SLD)/ipr
	$(RUN) -m dpt sld measure $(SLD)/images --method corrected --out $(SLD)/corrected
	$(RUN) -m dpt sld measure $(SLD)/images --detector noisy-oracle --num 500 --out $(SLD)/noisy
	$(RUN) -m dpt sld bench --pretrained_model_name_or_path ckpt/pocket-mmdit --dtype bfloat16 --out $(SLD)/edits
	for part in base ipr corrected noisy edits; do \
		mkdir -p docs/results/sld/$$part && cp $(SLD)/$$part/table.md docs/results/sld/$$part/ || exit 1; \
	done
	for part in base ipr corrected noisy; do cp $(SLD)/$$part/summary.jsonl docs/results/sld/$$part/ || exit 1; done
	cp $(SLD)/edits/edits.jsonl docs/results/sld/edits/
	cp $(SLD)/base/strips.png docs/results/sld/strips.png

# One image of each prompt, more of them of pairs of objects, where this model fails. Then the two ablations.
IPR = $(RUN) -m dpt ipr run --pretrained_model_name_or_path ckpt/pocket-mmdit \
	--categories spatial binding count single negation --prompts_per_category 450 300 150 50 50 --held_out 300 \
	--per_prompt 1 --num_timesteps 15 --batched --lora_rank 16 --learning_rate 4e-3 --lr_scheduler linear \
	--lr_warmup_steps 20 --max_train_steps 400 --logit_mean -0.8 --logit_std 1.2 --mixed_precision bf16
ipr: environment
	$(IPR) --out runs/ipr
	$(IPR) --out runs/ipr-drop --failures drop
	$(IPR) --out runs/ipr-weights --weight_number 1 --weight_colour 1 --weight_location 1
	mkdir -p docs/results/ipr
	cp $(addprefix runs/ipr/measured/,results.json table.md summary.jsonl sheet.png) docs/results/ipr/

# HPS on the embedded model: the second classifier, of other choices, scores what the first one selected. All drawn
# images keep the tuned model close to the base. The same command continues a run that was stopped.
HPS ?= runs/hps
HPS_MODEL = --pretrained_model_name_or_path ckpt/pocket-mmdit
CLASSIFIER = --max_train_steps 60 --train_batch_size 12 --learning_rate 2e-4 --adam_weight_decay 0.1 --lr_scheduler linear \
	--lr_warmup_steps 10 --visual_blocks 2 --text_blocks 0 --validation_steps 1000 --images $(HPS)/data/preference_images \
	--output_dir $(HPS)
LORA = $(HPS_MODEL) --max_train_steps 200 --train_batch_size 16 --lora_rank 16 --learning_rate 4e-3 --lr_scheduler linear \
	--lr_warmup_steps 20 --logit_mean -0.8 --logit_std 1.2 --mixed_precision bf16 --dataset_folder $(HPS)/selected \
	--regularization_folder $(HPS)/data/preference_images --output_dir $(HPS)
TRIPLE = --validation_steps 200 --validation_prompt_file benchmarks/hps_triple.txt --num_validation_images 2 \
	--validation_timesteps 15
hps: environment
	$(RUN) -m dpt prefer synthesize --out $(HPS)/data --prompts 200 --n_samples 6 --choose_from 3 --right 1.5 \
		--temperature 0.35 --num_timesteps 15 --mixed_precision bf16 --test_fraction 0.5 $(HPS_MODEL)
	$(RUN) -m dpt prefer train $(CLASSIFIER) --run_name selecting --seed 1 \
		--train_file $(HPS)/data/preference_train.json --test_file $(HPS)/data/preference_test.json
	$(RUN) -m dpt prefer train $(CLASSIFIER) --run_name measuring --seed 2 \
		--train_file $(HPS)/data/preference_test.json --test_file $(HPS)/data/preference_train.json
	$(RUN) -m dpt prefer check $(HPS)/data/preference_train.json $(HPS)/data/preference_test.json \
		--scorer $(HPS)/selecting/classifier ckpt/pocket/clip
	$(RUN) -m dpt prefer score --images $(HPS)/data/preference_images --scorer $(HPS)/selecting/classifier
	test -d $(HPS)/selected || $(RUN) -m dpt prefer select --scores $(HPS)/data/preference_images/scores.jsonl \
		--images $(HPS)/data/preference_images --out $(HPS)/selected --temperature 3
	$(RUN) train_hps.py $(LORA) --validation_steps 0 --ratios 0 1 0 --negative adapter --run_name npo --seed 1
	for seed in 1 2 3; do \
		$(RUN) train_hps.py $(LORA) $(TRIPLE) --negative_dropout 0.5 --ratios 4 2 1 --run_name hps$$seed \
			--seed $$seed || exit 1; \
		$(RUN) train_hps.py $(LORA) --validation_steps 0 --ratios 0 0 1 --negative none --run_name kept$$seed \
			--seed $$seed || exit 1; \
	done
	$(RUN) -m dpt bench run base npo=$(HPS)/hps1,negative_prompt=,negative_lora=$(HPS)/npo \
		$(foreach n,1 2 3,kept$(n)=$(HPS)/kept$(n) hps$(n)=$(HPS)/hps$(n) plain$(n)=$(HPS)/hps$(n),negative_prompt=) \
		--categories single binding count spatial --prompts 50 --per_prompt 1 --num_timesteps 15 --mixed_precision bf16 \
		--out $(HPS)/bench $(HPS_MODEL)
	$(RUN) -m dpt bench score $(HPS)/bench --hps $(HPS)/measuring/classifier --out $(HPS)/scored
	$(RUN) -m dpt bench report $(HPS)/scored

sweep: environment
	$(RUN) benchmarks/sweep.py --mixed_precision bf16 --out runs/sweep

pictures: environment
	rm -rf runs/pictures
	$(RUN) txt2img.py --prompt "three yellow squares" --n_samples 2 --seed 1 --guidance_scale 3 --trace --outdir runs/pictures
	cp runs/pictures/three-yellow-squares-001/trace.png docs/results/sampling/trace.png

# One thread: what has threads cannot be forked.
faults: dev-environment
	OMP_NUM_THREADS=1 $(RUN) -m tests.faults --out docs/results/reliability

FEATURES = bottom0 bottom1 bottom2 mid up0 up1 up2 bottom0_up0 all-96-8
study: environment
	for feature in $(FEATURES); do \
		$(RUN) train_stage1.py $(GROUNDING) --max_train_steps 2000 --unet_feature $$feature \
			--output_dir runs/study --run_name $$feature-grounding || exit 1; \
		$(RUN) train_stage1.py $(BOTH) --max_train_steps 500 --unet_feature $$feature \
			--output_dir runs/study --run_name $$feature --qformer_ckpt runs/study/$$feature-grounding || exit 1; \
	done
	$(RUN) -m dpt probe $(FEATURES:%=runs/study/%/adapter) --out docs/results/probe --num 500 --timesteps 100 300 500 700 900 --mixed_precision bf16

.PHONY: wheel
wheel: environment
	rm -rf build dist
	$(RUN) -m pip install --quiet build
	$(RUN) -m build --outdir dist

environment:
	@$(PYTHON) tools/make_venv.py $(VENV) --goal demo

dev-environment:
	@$(PYTHON) tools/make_venv.py $(VENV) --goal test --requirements requirements-dev.txt

.PHONY: fuzz
fuzz: dev-environment
	$(RUN) -m tests.fuzz --write docs/results/reliability

docs: environment
	$(RUN) -m pip install --quiet zensical==0.0.73
	$(RUN) tools/build_docs.py
