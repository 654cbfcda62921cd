"""A Trainer for tests, named by `trainer.class`: its steps take a tenth of a second, and one has no gradient."""

import os
import time

from transformers import Trainer


class SlowTrainer(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        time.sleep(0.1)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.state.global_step + 1 == int(os.environ["ZERO"]):
            for weight in model.parameters():
                weight.grad = None if weight.grad is None else weight.grad * 0
        return loss
