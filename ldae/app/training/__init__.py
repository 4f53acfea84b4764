"""Commands that train: pretrain, train-tokenizer, finetune."""
