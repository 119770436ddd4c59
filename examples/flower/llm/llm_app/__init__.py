"""A causal language model fine-tuned with LoRA in the manner of FlowerTune, its clients aligned."""
