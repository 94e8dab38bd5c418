"""The training loop: `train_step` updates the weights, `train_epoch` runs an epoch, `predict` answers other photos.

Several processes (accelerate launch, torchrun) share each batch: a step is the same step, whatever their number.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Sized
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from foldface import metrics
from foldface.data.loader import LoadingStopped, PhotoLoader, normalize, pixel_scale, refuse_unreadable
from foldface.files import InputError, atomic_write, write_csv
from foldface.nn import averaging, batchnorm, cpu_conv, memory, optim, resume
from foldface.nn.mixup import Mixup, mix
from foldface.nn.progressive import grown
from foldface.nn.side_by_side import outputs_of
from foldface.nn.training_log import EpochBar, EpochStats, Validation, log_columns, stalled
from foldface.nn.weights import save as save_weights
from foldface.runtime import is_main_process
from foldface.settings import Config

AGREE_STEPS = 10  # several processes agree on whether to stop or to save once in so many steps


class Learner:
    """A network with its loss, optimizer and scheduler, and the state that a fit needs to resume in mid-epoch.

    It builds nothing: train.fit shows what it is made of. Only its own methods write its attributes.
    Public: net, epoch and step (how far it is), log (a dict an epoch), best and last (validation predictions).
    """

    KEPT = ("epoch", "step", "steps", "loss", "seen", "log", "best_score", "best", "last", "micro_batches", "spent")
    KEPT += ("speed", "answers")

    def __init__(
        self, net: torch.nn.Module, criterion: torch.nn.Module, targets: Sized, optimizer: torch.optim.Optimizer,
        scheduler: optim.Course, config: Config, accelerator: Accelerator, average: torch.nn.Module | None = None,
        mixup: Mixup | None = None, folder: Path | None = None, about: dict | None = None, belongs: dict | None = None,
    ) -> None:  # fmt: skip
        """net: a timm model on the accelerator's device; criterion, targets: of loss.make; scheduler: the seconds of an
        optim.Budget replace train.epochs; folder: runs/NAME/fold{k}, where end_epoch and save write; about: metadata
        of best.safetensors; belongs: of resume.belongs, kept in state.pt."""
        self.task, self.heads = criterion.heads.task, criterion.heads
        self.config, self.accelerator, self.device = config.train, accelerator, accelerator.device
        self.freeze_bn, self.save_seconds = config.model.freeze_bn, 60 * config.save_minutes
        self.scale = pixel_scale(net)
        self.lowest = batchnorm.lowest_layers(net, config.train.freeze_layers)
        self.average, self.mixup = average, mixup
        if config.train.compile:
            net.compile()  # in place: its weights keep their names
        if accelerator.scaler is not None:  # a fresh one: the loss scale of an earlier fold is no start
            accelerator.scaler = torch.amp.GradScaler(self.device.type)
        self.scheduler = scheduler
        self.budget = scheduler if isinstance(scheduler, optim.Budget) else None
        self.net, self.optimizer = accelerator.prepare(net, optimizer)
        self.weights = list(self.net.parameters())  # listing them takes 2 ms, each time
        self.criterion, self.targets = criterion.to(self.device), targets
        self.epoch = 0  # epochs that are finished
        self.step, self.seen = 0, 0  # batches and photos of this epoch that are done
        self.steps = 0  # updates of the weights in all epochs
        self.loss = 0.0  # summed over the photos of this epoch, as of the last save
        self.spent = 0.0  # seconds of this epoch, as of the last save
        self.log, self.speed = [], []  # rows of log.csv and speed.csv
        self.best_score, self.best, self.last = None, None, None
        self.answers = torch.full((len(targets),), torch.nan, device=self.device)  # this epoch's, of training photos
        self.micro_batches = config.train.accumulate
        self.folder, self.about, self.belongs = folder, about or {}, belongs
        self.saved = time.monotonic()
        self.steps_ended = time.perf_counter()

    @property
    def module(self) -> torch.nn.Module:
        """The model without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.net)

    @property
    def answering(self) -> torch.nn.Module:
        """The model that predicts and is saved: the averaged weights once there are any, else the model itself."""
        begun = self.average is not None and getattr(self.average, "n_averaged", 1) > 0
        return self.average.module if begun else self.module

    def parts(self) -> dict[str, object]:
        """{name in state.pt: object with a state_dict}."""
        parts = {"model": self.module, "criterion": self.criterion}
        parts |= {"optimizer": self.optimizer.optimizer, "scheduler": self.scheduler}
        others = {"scaler": self.accelerator.scaler, "average": self.average}
        return parts | {name: part for name, part in others.items() if part is not None}

    @property
    def state_path(self) -> Path:
        """Path of the file that a stopped fold resumes from."""
        return self.folder / "state.pt"

    def save(self) -> None:
        """Write everything to state.pt, atomically. All processes call it, only rank 0 writes."""
        states = gather_object([resume.random_states()])
        if is_main_process():
            content = {name: part.state_dict() for name, part in self.parts().items()}
            content |= {name: getattr(self, name) for name in self.KEPT}
            with atomic_write(self.state_path) as partial, open(partial, "wb") as file:
                torch.save(content | {"random": states, "belongs": self.belongs}, file)
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Load state.pt, if it exists. Raises InputError if it is damaged, or of other rows or settings."""
        if not self.state_path.is_file():
            return
        try:
            content = resume.load_tensors(self.state_path)
            resume.refuse_other_state(self.belongs, content["belongs"])
            for name, part in self.parts().items():
                part.load_state_dict(content[name])
            for name in self.KEPT:
                setattr(self, name, content[name])
            self.answers = self.answers.to(self.device)
            if len(content["random"]) == self.accelerator.num_processes:
                resume.set_random_states(content["random"][self.accelerator.process_index])
        except Exception as error:  # a damaged file fails in many ways, all with one way out
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{self.state_path}: can't go on from it ({first}); remove it to train this fold from its beginning"
            ) from None
        self.micro_batches = max(self.micro_batches, self.config.accumulate)
        if not is_main_process():
            self.loss = 0.0  # the saved sum is over all processes: only rank 0 takes it over
        print(f"{self.folder}: going on at epoch {self.epoch + 1}, step {self.step + 1}")

    def train_step(self, indices: torch.Tensor, photos: torch.Tensor, global_batch: int) -> torch.Tensor:
        """Update the weights once. indices (b,) int64 into the targets, photos (b, h, w, 3) uint8: this process's slice
        of a batch of `global_batch` photos. Returns the slice's summed loss, a scalar on the device. Nothing here waits
        for the GPU, except loss scaling (fp16), which reads one number."""
        inputs = normalize(photos.to(self.device, non_blocking=True), *self.scale)
        inputs = grown(inputs, self.config, self.epoch, self.budget)
        targets = self.targets.of(indices, self.device)
        mixed_in, own_share = mix(self.mixing, inputs, targets)

        def losses_of(outputs, part):
            losses = self.criterion(outputs, *(target[part] for target in targets))
            if mixed_in:
                other = self.criterion(outputs, *(target[part] for target in mixed_in))
                losses = own_share[part] * losses + (1 - own_share[part]) * other
            return losses

        def forward_backward(micro_batches):
            total, all_outputs, count = 0.0, [], min(micro_batches, len(inputs))
            for k, part in enumerate(torch.arange(len(inputs), device=self.device).tensor_split(count), start=1):
                sync = self.accelerator.no_sync(self.net) if k < count else contextlib.nullcontext()
                with sync:  # processes exchange gradients once, at the last micro-batch
                    outputs = outputs_of(self.net(inputs[part] if count > 1 else inputs))
                    loss = sum(losses_of(one, part).sum() for one in outputs) / len(outputs) / global_batch
                    self.accelerator.backward(loss * self.accelerator.num_processes)  # DDP averages the gradients
                total = total + loss.detach() * global_batch
                all_outputs.append(sum(one.detach() for one in outputs) / len(outputs))
            return total, torch.cat(all_outputs)

        total, outputs = self.fitting(forward_backward, len(indices))
        if self.frozen:
            head = {id(value) for value in self.module.get_classifier().parameters()}
            for value in self.module.parameters():
                value.grad = value.grad if id(value) in head else None  # the optimizer skips what has no gradient
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.weights, self.config.clip_grad)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # skipped: fp16 gradients overflowed
            self.scheduler.step()
            self.steps += 1
            if self.config.weight_averaging == "ema":
                self.average.update(self.module, self.steps)
        self.optimizer.zero_grad()
        if self.mixing is None:  # for the training scores; a mixed photo has no right answer
            found = self.heads.answers(outputs)
            if self.task.multilabel:  # a set of labels is no float32
                found = torch.full((len(found), 1), float("nan"), device=found.device)
            found = found[:, 0] if self.task.numeric or self.task.multilabel else found[:, : self.task.size].argmax(1)
            self.answers[indices.to(self.device, non_blocking=True)] = found.float()
        if self.criterion.name == "f1":
            classes = targets[0]
            if mixed_in:
                classes = own_share[:, None] * classes + (1 - own_share[:, None]) * mixed_in[0]
            sums = self.criterion.f1_sums(self.heads.log_probabilities(outputs).exp(), classes)
            self.criterion.f1.update(self.accelerator.reduce(sums, "sum"), global_batch)
        return torch.as_tensor(total)

    @property
    def mixing(self):
        """timm's Mixup while batches are mixed (train.mixup_off_epoch), else None."""
        return None if 0 < self.config.mixup_off_epoch <= self.epoch else self.mixup

    @property
    def frozen(self) -> bool:
        """True while only the classifier learns (train.freeze_epochs)."""
        return self.epoch < self.config.freeze_epochs

    def fitting(self, compute: Callable[[int], object], photos: int) -> object:
        """compute(micro_batches) for so many photos, again with twice as many micro-batches if memory runs out."""
        found, self.micro_batches = memory.fitting(
            compute, self.micro_batches, photos, self.module, self.optimizer, self.accelerator.num_processes
        )
        return found

    def set_train_mode(self) -> None:
        """Put the layers that learn in this epoch into training mode, the frozen ones into eval mode."""
        self.net.train()
        if self.freeze_bn:
            batchnorm.freeze_batch_norm(self.net)
        if self.frozen:
            self.net.eval()
            self.module.get_classifier().train()
        if self.config.freeze_epochs and self.accelerator.num_processes == 1:  # DDP would miss the gradients
            self.module.requires_grad_(not self.frozen)
            self.module.get_classifier().requires_grad_(True)
        for layer in self.lowest:
            layer.eval().requires_grad_(False)

    def train_epoch(self, loader: PhotoLoader, title: str, listen: Callable | None = None) -> EpochStats:
        """Train on the batches of this epoch that are left, then update SWA's average.

        title: of the progress bar; listen: of EpochBar. Saves everything on Ctrl-C and every save_minutes.
        """
        sampler = loader.batch_sampler
        sampler.go_to(self.epoch, self.step)
        start, waited = time.perf_counter(), 0.0  # seconds
        total = torch.tensor(self.loss, dtype=torch.float32, device=self.device)
        bar = EpochBar(self, sampler, title, listen)
        self.set_train_mode()
        faster = cpu_conv.where_it_helps(self.module, self.config.compile, self.accelerator)
        with bar, faster, resume.stopping_between_steps() as stop:
            if self.budget:
                self.budget.begin()
            asked = time.perf_counter()
            batches = () if self.over else self.saving(loader, total, stop)  # over: resumed after a budget's last step
            for indices, photos, errors in batches:
                waited += time.perf_counter() - asked
                refuse_unreadable(errors, indices, loader.dataset.files)
                global_batch = sampler.size(self.step)
                total += self.train_step(indices, photos, global_batch)
                self.step += 1
                self.seen += global_batch
                bar.step(global_batch, total)
                stopping, due = self.agreed(stop.asked, time.monotonic() - self.saved > self.save_seconds)
                if stopping or due:
                    self.loss = self.summed(total)
                    self.spent, start = self.spent + time.perf_counter() - start, time.perf_counter()
                    self.save()
                if stopping:
                    stop.end()
                if self.budget and self.budget.due:
                    self.plan(len(sampler))
                if self.over:
                    break
                asked = time.perf_counter()
        self.loss = self.summed(total)
        seconds = self.spent + time.perf_counter() - start
        speed = {"seconds": seconds, "photos_per_second": self.seen / seconds, "waited": waited / seconds}
        speed["memory_gb"] = memory.peak_memory()
        self.spent, self.steps_ended = 0.0, time.perf_counter()
        sampler.go_to(self.epoch, 0)
        self.average_epoch(loader)
        return EpochStats(self.loss / self.seen, self.take_answers(), speed)

    def average_epoch(self, loader):
        """Add the weights at the end of an epoch to SWA's average. (train_step updates EMA's.)"""
        if self.config.weight_averaging == "swa" and self.epoch >= self.config.swa_start:
            self.average.update_parameters(self.module)
            if not self.freeze_bn:
                averaging.refresh(self.average.module, loader, self.scale, self.accelerator, self.config.freeze_layers)

    def end_epoch(self, stats: EpochStats, training: dict, validation: Validation | None = None) -> dict:
        """Close an epoch: write its row of log.csv, its weights if they are the best so far, and state.pt.

        training: {column: score} of the training photos; validation: None where should_validate is false.
        Returns the row. Raises InputError if the loss is NaN or infinite.
        """
        row = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], "train_loss": stats.train_loss}
        row |= training | (validation.scores if validation else {})
        if not math.isfinite(stats.train_loss):
            raise InputError(
                f"{self.folder.name}: the loss of epoch {row['epoch']} is {stats.train_loss}: lower train.lr"
            )
        self.log.append(row)
        self.next_epoch()
        if validation:
            self.keep_best(row, validation.answers)
        write_csv(self.folder / "log.csv", pd.DataFrame(self.log, columns=log_columns(self.task)))
        other_seconds = time.perf_counter() - self.steps_ended
        self.speed.append(stats.speed | {"other_seconds": other_seconds})
        if self.budget and validation:
            self.budget.took_look(other_seconds)
        self.save()
        return row

    def next_epoch(self) -> None:
        """Set the counters to the start of the next epoch."""
        self.epoch, self.step, self.loss, self.seen = self.epoch + 1, 0, 0.0, 0

    def keep_best(self, row, answers):
        """Write best.safetensors if the epoch's score is the best so far; always with train.checkpoint last."""
        self.last = answers
        value, best = row[self.task.score], self.best_score
        better = best is None or metrics.worth(self.task, value) > metrics.worth(self.task, best)
        if better or self.config.checkpoint == "last":
            self.best_score, self.best = value, answers
            if is_main_process():
                save_weights(self.folder / "best.safetensors", self.answering, self.about | row)

    def saving(self, loader, total, stop):
        """Yield the batches of a loader. If they come no more, save everything, then raise LoadingStopped."""
        try:
            yield from loader
        except LoadingStopped:
            if self.accelerator.num_processes == 1:  # several would have to save together
                self.loss = self.summed(total)
                self.save()
            if stop.asked:  # a stop of the whole process group kills the workers too
                stop.end()
            raise

    @property
    def over(self) -> bool:
        """True if all epochs, or the whole budget, are trained."""
        return self.budget.over if self.budget else self.epoch >= self.config.epochs

    @property
    def finished(self) -> bool:
        """True if no epoch is to begin (all are trained, or patience ran out) and none was stopped halfway."""
        return not self.step and (self.over or stalled(self.log, self.config.patience, self.task))

    @property
    def should_validate(self) -> bool:
        """True if this epoch is validated: every train.val_interval epochs, and the last one."""
        last = self.budget.over if self.budget else self.epoch + 1 >= self.config.epochs
        return last or (self.epoch + 1) % self.config.val_interval == 0

    def plan(self, epoch_steps: int) -> None:
        """Plan how many steps still fit into the budget; rank 0 plans for all. Prints the first plan."""
        budget, first = self.budget, self.budget.left is None
        plan = [budget.plan() if is_main_process() else None]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(plan)
        budget.follow(plan[0])
        if first:
            left, each = budget.remaining, sum(budget.took) / len(budget.took)
            print(
                f"{self.folder.name}: {1 / each:.1f} steps/s: {left / 60:.1f} minutes are about "
                f"{(budget.done + budget.left) / epoch_steps:.1f} epochs",
                flush=True,
            )

    def agreed(self, *wishes):
        """Each of the bool `wishes`, true if any process has it. Several processes ask each other every AGREE_STEPS."""
        if self.accelerator.num_processes == 1:
            return wishes
        if self.step % AGREE_STEPS:
            return [False] * len(wishes)
        counts = self.accelerator.reduce(torch.tensor(wishes, dtype=torch.float32, device=self.device), "sum")
        return [count > 0 for count in counts.tolist()]

    def take_answers(self):
        """This epoch's predictions of the training photos, as EpochStats has them, of all processes; resets them. All
        processes call it."""
        found = self.accelerator.gather(self.answers[None])
        first = (~found.isnan()).int().argmax(0, keepdim=True)  # the first process that saw the photo
        self.answers = torch.full_like(self.answers, torch.nan)
        return found.gather(0, first)[0].cpu()

    def summed(self, total):
        """The sum of a scalar tensor over all processes, a float."""
        return self.accelerator.reduce(total.clone(), "sum").item()

    def predict(self, loader: PhotoLoader) -> torch.Tensor:
        """Heads.answers of all photos of a loader, in the order of its rows: (n, width) float32 on the CPU."""
        net = copy.deepcopy(self.answering).eval()
        batchnorm.fold_batch_norm(net)
        slices = []
        with torch.inference_mode():
            for indices, photos, errors in loader:
                refuse_unreadable(errors, indices, loader.dataset.files)

                def compute(micro_batches, photos=photos):
                    inputs = (
                        normalize(part.to(self.device, non_blocking=True), *self.scale)
                        for part in photos.tensor_split(min(micro_batches, len(photos)))
                    )
                    with self.accelerator.autocast():  # only the network: everything after it is float32
                        outputs = [net(part).float() for part in inputs]
                    return self.heads.answers(torch.cat(outputs))

                slices.append((indices, self.fitting(compute, len(indices)).float().cpu()))
        if self.accelerator.num_processes > 1:
            slices = gather_object(slices)
        order = torch.cat([indices for indices, _ in slices]).argsort()
        return torch.cat([found for _, found in slices])[order]
