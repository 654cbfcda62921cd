"""A Trainer for tests, named by `trainer.class`: it keeps what the trained model says and how it is held."""

import os

import torch
from transformers import Trainer

IDS = torch.arange(3, 43).reshape(1, 40)


class ProbeTrainer(Trainer):
    def train(self, *args, **kwargs):
        start = {
            name: weight.detach().clone() for name, weight in self.model.named_parameters() if weight.requires_grad
        }
        output = super().train(*args, **kwargs)
        self.model.eval()
        with torch.no_grad():
            logits = self.model(input_ids=IDS).logits.float()
        dtypes = {name: (str(weight.dtype), weight.requires_grad) for name, weight in self.model.named_parameters()}
        moved = [
            name for name, weight in self.model.named_parameters() if name in start and (weight != start[name]).any()
        ]
        kept = {"logits": logits, "dtypes": dtypes, "moved": moved, "autocast": self.accelerator.mixed_precision}
        torch.save(kept, os.environ["PROBE"])
        return output
