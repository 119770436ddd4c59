"""A text classifier fine-tuned with LoRA and FedAvg, its clients aligned."""
