"""The Telugu distillation book: model, loss, hard set, LoRA replay and their records."""
