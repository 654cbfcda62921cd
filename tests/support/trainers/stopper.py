"""A Trainer for tests, named by `trainer.class`: things happen to it at a step, as the environment says.

STOP=3: the process gets SIGTERM while step 3 runs (STOP_BY another one). WAIT=3: step 3 makes a file `reached` and runs
until the file `go` is there; WAIT_IN=save: the writing of a checkpoint does. NAN, MEMORY: what the names say.
"""

import os
import resource
import signal
import time
from pathlib import Path

import torch
from transformers import Trainer


class StopTrainer(Trainer):
    def due(self, name):
        return os.environ.get(name) == str(self.state.global_step + (os.environ.get("WAIT_IN") != "save"))

    def wait(self):
        Path("reached").write_text("1")
        while not Path("go").exists():
            time.sleep(0.02)

    def training_step(self, model, inputs, *args, **kwargs):
        if self.due("STOP"):
            os.kill(os.getpid(), getattr(signal, os.environ.get("STOP_BY", "SIGTERM")))
        if self.due("WAIT") and os.environ.get("WAIT_IN") != "save":
            self.wait()
        if self.due("MEMORY"):
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), resource.RLIM_INFINITY))
        if self.due("NAN"):
            with Path("seen").open("a") as file:
                for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
                    file.write(f"{ids[mask == 1].tolist()}\n")
            next(p for p in self.model.parameters() if p.requires_grad).data.fill_(torch.nan)
        return super().training_step(model, inputs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if os.environ.get("WAIT_IN") == "save" and self.due("WAIT"):
            self.wait()
