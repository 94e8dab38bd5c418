"""A model and all that moves it: accelerator, one step, one epoch, one look at the others, its state on disk.

Several processes (accelerate launch, torchrun) share each batch: a step is the same step, whatever their number.
"""

import contextlib
import copy
import gc
import sys
import time
from pathlib import Path

from foldface.files import InputError, atomic_write
from foldface.nn import devices, optim, resume
from foldface.runtime import is_main_process

AGREE_STEPS = 10  # several processes ask each other every so many steps whether to stop or to save


def make_accelerator(config):
    """Hugging Face's Accelerator: device, precision with loss scaling. fp16 is refused on a CPU."""
    from accelerate import Accelerator

    device = devices.choose(config)
    return Accelerator(
        mixed_precision=devices.training_precision(device, config.train.amp),
        cpu=device.type == "cpu",  # of several processes without GPUs accelerate takes each for a single one otherwise
    )


class Learner:
    """A model and all that moves it: whatever a fit needs to go on in mid-epoch as if it had never stopped.

    Public: net, epoch and step (how far it is), log (a dict an epoch), best and last (validation probabilities),
    answers (what each training photo was last answered with in this epoch, NaN where it has not been).
    """

    KEPT = ("epoch", "step", "steps", "loss", "seen", "log", "best_score", "best", "last", "pieces", "spent", "speed")
    KEPT += ("answers",)

    def __init__(self, net, criterion, targets, rows, config, fold, steps, accelerator, seconds=None, look=0):
        """net: a timm model; criterion, targets: loss.Loss and loss.Targets; rows: DataFrame of training rows; steps:
        batches an epoch; seconds: for an optim.Budget instead of train.epochs, look: about how many steps a look at
        the validation photos costs. train.make_learner seeds everything and builds them."""
        import timm
        import torch

        from foldface.data import loader
        from foldface.nn import batchnorm

        self.task, self.heads = config.predicted, criterion.heads
        net = net.to(memory_format=torch.channels_last)
        self.lowest = batchnorm.lowest_layers(net, config.train.freeze_layers)
        for layer in self.lowest:
            layer.requires_grad_(False)
        self.scale = [
            net.pretrained_cfg.get(key, default) for key, default in zip(("mean", "std"), loader.IMAGENET, strict=True)
        ]
        self.freeze_bn, self.save_seconds = config.model.freeze_bn, 60 * config.save_minutes
        self.config, self.accelerator, self.device = config.train, accelerator, accelerator.device
        self.precision = accelerator.mixed_precision
        self.average = optim.make_average(net.to(self.device), config.train)
        if config.train.compile:
            net.compile()  # in place: its weights keep their names
        if accelerator.scaler is not None:  # its own: what an earlier fold came to is no beginning
            accelerator.scaler = torch.amp.GradScaler(self.device.type)
        parameters = optim.parameter_groups(net, config.train)
        optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
        self.budget = None
        if seconds is not None:
            self.budget = optim.Budget(optimizer, config.train, seconds, steps * config.train.val_interval, look)
        self.scheduler = self.budget or optim.make_scheduler(optimizer, config.train, steps)
        # after the scheduler: both wrap the optimizer's step, and torch warns where accelerate's wrapper hides its own
        self.net, self.optimizer = accelerator.prepare(net, optimizer)
        self.weights = list(self.net.parameters())  # listing them takes 2 ms, each time
        self.criterion, self.targets = criterion.to(self.device), targets
        mixed = config.train.mixup, config.train.cutmix
        self.mixup = timm.data.Mixup(*mixed, label_smoothing=0.0) if any(mixed) else None
        self.epoch, self.step, self.steps, self.loss, self.seen = 0, 0, 0, 0.0, 0
        self.log, self.best_score, self.best, self.last = [], None, None, None
        self.spent, self.speed = 0.0, []
        self.answers = torch.full((len(rows),), torch.nan, device=self.device)
        self.pieces = config.train.accumulate
        self.path, self.saved = Path(config.run) / f"fold{fold}" / "state.pt", time.monotonic()
        self.belongs = resume.belongs(config, fold, rows)

    @property
    def module(self):
        """The model itself, without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.net)

    @property
    def answering(self):
        """The model that answers: the average, where there is one already."""
        begun = self.average is not None and getattr(self.average, "n_averaged", 1) > 0
        return self.average.module if begun else self.module

    def parts(self):
        """What has a state_dict."""
        parts = {"model": self.module, "optimizer": self.optimizer.optimizer, "scheduler": self.scheduler}
        parts |= {"criterion": self.criterion}
        others = {"scaler": self.accelerator.scaler, "average": self.average}
        return parts | {name: part for name, part in others.items() if part is not None}

    def refuse_other_state(self, before):
        """Raise ValueError where a state is of another fold, other rows or other settings: to go on from another fold's
        would be to validate on people who were trained on."""
        for name, now in self.belongs.items():
            if name == "settings":
                changed = [key for key in now if key in before[name] and before[name][key] != now[key]]
                if changed:
                    raise ValueError(f"it was saved with other settings: {', '.join(changed)}")
            elif before[name] != now:
                what = f"it is of fold {before[name]}" if name == "fold" else "it was trained on other photos or labels"
                raise ValueError(what)

    def save(self):
        """Write everything to state.pt, atomically. All processes call it, the first one writes."""
        import torch
        from accelerate.utils import gather_object

        states = gather_object([resume.random_states()])
        if is_main_process():
            content = {name: part.state_dict() for name, part in self.parts().items()}
            content |= {name: getattr(self, name) for name in self.KEPT}
            with atomic_write(self.path) as partial, open(partial, "wb") as file:
                torch.save(content | {"random": states, "belongs": self.belongs}, file)
        self.saved = time.monotonic()

    def load(self):
        """Go back to what was saved, if anything was. Raises InputError if the file is damaged."""
        if not self.path.is_file():
            return
        try:
            content = resume.load_tensors(self.path)
            self.refuse_other_state(content["belongs"])
            for name, part in self.parts().items():
                part.load_state_dict(content[name])
            for name in self.KEPT:
                setattr(self, name, content[name])
            self.answers = self.answers.to(self.device)
            if len(content["random"]) == self.accelerator.num_processes:
                resume.set_random_states(content["random"][self.accelerator.process_index])
        except Exception as error:  # a damaged file fails in many ways, all with one way out
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.path}: can't go on from it ({first}); remove it to train this fold anew") from None
        self.pieces = max(self.pieces, self.config.accumulate)
        if not is_main_process():
            self.loss = 0.0  # it is a sum over the processes, and the first one carries it
        print(f"{self.path.parent}: going on at epoch {self.epoch + 1}, step {self.step + 1}")

    def train_step(self, indices, photos, whole):
        """One update. indices (b,) int64 into the labels, photos (b, h, w, 3) uint8: this process's share of a batch
        of `whole` photos. Returns the share's summed loss, on the device.

        Nothing here waits for the GPU, but loss scaling (fp16), which looks at one number.
        """
        import torch

        from foldface.data import loader

        inputs = loader.normalize(photos.to(self.device, non_blocking=True), *self.scale)
        first = self.targets.of(indices, self.device)
        second, share = self.mix(inputs, first)

        def compute(pieces):
            total, said, pieces = 0.0, [], min(pieces, len(inputs))
            for k, part in enumerate(torch.arange(len(inputs), device=self.device).tensor_split(pieces), start=1):
                waits = self.accelerator.no_sync(self.net) if k < pieces else contextlib.nullcontext()
                with waits:  # processes exchange gradients once, at the last piece
                    outputs = self.net(inputs[part] if pieces > 1 else inputs)
                    each = self.criterion(outputs, *(target[part] for target in first))
                    if second:
                        other = self.criterion(outputs, *(target[part] for target in second))
                        each = share[part] * each + (1 - share[part]) * other
                    value = each.sum() / whole
                    self.accelerator.backward(value * self.accelerator.num_processes)  # they are averaged
                total = total + value.detach() * whole
                said.append(outputs.detach())
            return total, torch.cat(said)

        total, outputs = self.fitting(compute, len(indices))
        if self.frozen:
            head = {id(value) for value in self.module.get_classifier().parameters()}
            for value in self.module.parameters():
                value.grad = value.grad if id(value) in head else None  # without one the optimizer passes it over
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.weights, self.config.clip_grad)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # fp16: a step whose gradients overflowed doesn't count
            self.scheduler.step()
            self.steps += 1
            if self.config.average == "ema":
                self.average.update(self.module, self.steps)
        self.optimizer.zero_grad()
        if self.mixup is None:  # a mixed photo has no right answer
            found = self.heads.answers(outputs)
            found = found[:, 0] if self.task.numeric else found[:, : self.task.size].argmax(1).float()
            self.answers[indices.to(self.device, non_blocking=True)] = found
        if self.criterion.name == "f1":
            classes = first[0] if not second else share[:, None] * first[0] + (1 - share[:, None]) * second[0]
            sums = self.criterion.f1_sums(self.heads.log_probabilities(outputs).exp(), classes)
            self.criterion.f1.update(self.accelerator.reduce(sums, "sum"), whole)
        return torch.as_tensor(total)

    @property
    def frozen(self):
        """Does the classifier alone learn in this epoch?"""
        return self.epoch < self.config.freeze_epochs

    def mix(self, inputs, targets):
        """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch, in place, by timm.

        Returns (targets of the photos that were mixed in, (b,) the share of the photos themselves), or (None, None).
        For CutMix the share is the area that was really left, so that targets are mixed as the pixels are.
        """
        import torch

        if self.mixup is None or len(inputs) < 2:
            return None, None
        even = len(inputs) // 2 * 2  # timm pairs the first with the last; an odd one out stays as it is
        self.mixup.num_classes = even
        _, mixed = self.mixup(inputs[:even], torch.arange(even, device=inputs.device))
        share = torch.ones(len(inputs), device=inputs.device)
        share[:even] = mixed.diagonal()
        order = torch.arange(len(inputs), device=inputs.device)
        order[:even] = order[:even].flip(0)
        return [target[order] for target in targets], share

    def average_epoch(self, feed):
        """Take an epoch's end into SWA's average, and put its batch norm right with the training photos.

        (EMA averages the statistics too, at every step: they are never far behind its weights.)
        """
        from foldface.data import loader
        from foldface.nn import batchnorm

        if self.config.average != "swa" or self.epoch < self.config.swa_start:
            return
        self.average.update_parameters(self.module)
        if self.freeze_bn:
            return
        inputs = (loader.normalize(photos.to(self.device, non_blocking=True), *self.scale) for _, photos, _ in feed)
        with self.accelerator.autocast():
            kept = batchnorm.lowest_layers(self.average.module, self.config.freeze_layers)
            batchnorm.refresh_batch_norm(self.average.module, inputs, kept)
        for name, value in self.average.module.named_buffers():
            if name.endswith(("running_mean", "running_var")) and self.accelerator.num_processes > 1:
                value.copy_(self.accelerator.reduce(value, "mean"))

    def fitting(self, compute, photos):
        """compute(pieces), with twice as many pieces each time that memory ran out: the step stays the same step, but
        for batch norm that learns its statistics, which then sees pieces: that is said.

        Raises InputError where that can't help: a photo or two at a time is too much, or several processes would
        have to do it at once.
        """
        import torch
        from accelerate.utils.memory import should_reduce_batch_size

        while True:
            try:
                return compute(self.pieces)
            except (RuntimeError, MemoryError) as error:
                if not should_reduce_batch_size(error):
                    raise
                if self.accelerator.num_processes > 1 or 4 * self.pieces > photos:
                    raise InputError(
                        f"out of memory with {photos} photos in {self.pieces} pieces: start again with "
                        f"--train.accumulate {2 * self.pieces}, or with a smaller --data.image_size"
                    ) from None
            self.optimizer.zero_grad()
            self.pieces *= 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            norms = [part for part in self.module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
            learning = torch.is_grad_enabled() and any(part.training for part in norms)
            print(
                f"out of memory: a batch is now computed in {self.pieces} pieces; "
                + (
                    "batch norm takes its statistics from each piece alone from now on, which changes the steps: "
                    "--model.freeze_bn true, or a smaller --data.image_size, would leave them as they are"
                    if learning
                    else "steps stay as they are"
                ),
                flush=True,
            )

    @contextlib.contextmanager
    def training(self):
        """While the block runs, all that learns in this epoch is in training mode, and the rest is not."""
        from foldface.nn import batchnorm, cpu_conv

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
        faster = not self.config.compile and cpu_conv.helps(self.device, self.accelerator.mixed_precision)
        with cpu_conv.quick(self.module) if faster else contextlib.nullcontext():
            yield

    def train_epoch(self, feed, title):
        """The rest of the epoch. feed: a loader of foldface/data/loader.py. Returns {"seconds", "photos_per_second",
        "waited"}, the last a share of the seconds. On Ctrl-C, and every few minutes, everything is saved.
        """
        import torch
        from tqdm import tqdm

        batches, waited, start = feed.batch_sampler, 0.0, time.perf_counter()
        total = torch.tensor(self.loss, dtype=torch.float32, device=self.device)
        bar = tqdm(total=batches.count, initial=self.seen, desc=title, unit="photo", leave=False, disable=None)
        with bar, self.training(), resume.stopping_between_steps() as stop:
            if self.budget:
                self.budget.begin()
            asked = time.perf_counter()
            photos_left = () if self.over else self.saving(feed, total, stop)  # over: saved at a budget's last step
            for indices, photos, errors in photos_left:
                waited += time.perf_counter() - asked
                refuse_unreadable(errors, indices, feed.dataset.files)
                whole = batches.size(self.step)
                total += self.train_step(indices, photos, whole)
                self.step, self.seen = self.step + 1, self.seen + whole
                bar.update(whole)
                if not bar.disable and self.step % 20 == 0:  # .item() waits for the GPU: now and then, not every step
                    best = {} if self.best_score is None else {self.task.score: f"{self.best_score:.3f}"}
                    bar.set_postfix(loss=f"{total.item() / self.seen:.3f}", **best)
                stopping, due = self.agreed(stop.asked, time.monotonic() - self.saved > self.save_seconds)
                if stopping or due:
                    self.loss = self.summed(total)
                    self.spent, start = self.spent + time.perf_counter() - start, time.perf_counter()
                    self.save()
                if stopping:
                    stop.end()
                if self.budget and self.budget.due:
                    self.plan(len(batches))
                if self.over:
                    break
                asked = time.perf_counter()
        self.loss = self.summed(total)
        seconds = self.spent + time.perf_counter() - start
        self.spent, rate = 0.0, self.seen / seconds
        return {"seconds": seconds, "photos_per_second": rate, "waited": waited / seconds, "memory_gb": peak_memory()}

    def saving(self, feed, total, stop):
        """The batches of a feed. Where a worker was killed everything is saved before WorkerLost goes on."""
        from foldface.data.loader import WorkerLost

        try:
            yield from feed
        except WorkerLost:
            if self.accelerator.num_processes == 1:  # several would have to save together
                self.loss = self.summed(total)
                self.save()
            if stop.asked:  # who stops a whole group of processes kills the workers too
                stop.end()
            raise

    @property
    def over(self):
        """Is there nothing left to train?"""
        return self.budget.over if self.budget else self.epoch >= self.config.epochs

    @property
    def ending(self):
        """Is the epoch whose steps are done the last one?"""
        return self.budget.over if self.budget else self.epoch + 1 >= self.config.epochs

    def plan(self, epoch_steps):
        """Plan the rest of a budget: the first process does, for all. The first plan is said."""
        from accelerate.utils import broadcast_object_list

        budget, first = self.budget, self.budget.left is None
        plan = [budget.plan() if is_main_process() else None]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(plan)
        budget.left = plan[0]
        if first:
            left, each = budget.remaining, sum(budget.took) / len(budget.took)
            print(
                f"{self.path.parent.name}: {1 / each:.1f} steps/s: {left / 60:.1f} minutes are about "
                f"{(budget.done + budget.left) / epoch_steps:.1f} epochs",
                flush=True,
            )

    def agreed(self, *wishes):
        """What this process wishes, or, of several, what any of them does; those ask each other now and then only."""
        import torch

        if self.accelerator.num_processes == 1:
            return wishes
        if self.step % AGREE_STEPS:
            return [False] * len(wishes)
        counts = self.accelerator.reduce(torch.tensor(wishes, dtype=torch.float32, device=self.device), "sum")
        return [count > 0 for count in counts.tolist()]

    def take_answers(self):
        """What this epoch's training photos were answered with, as its steps saw them: (n,) float32 on the CPU, NaN
        where a photo was not drawn. The next epoch begins without. All processes call it."""
        import torch

        found = self.accelerator.gather(self.answers[None])
        first = (~found.isnan()).int().argmax(0, keepdim=True)  # the first process that saw the photo
        self.answers = torch.full_like(self.answers, torch.nan)
        return found.gather(0, first)[0].cpu()

    def summed(self, total):
        """A sum over this process's shares -> over all processes', a float."""
        return self.accelerator.reduce(total.clone(), "sum").item()

    def predict(self, feed):
        """heads.Heads.answers of all photos of a loader, in its order: (n, width) float32, on every process's CPU."""
        import torch
        from accelerate.utils import gather_object

        from foldface.data import loader
        from foldface.nn import batchnorm

        net = copy.deepcopy(self.answering).eval()
        batchnorm.fold_batch_norm(net)
        shares = []
        with torch.inference_mode():
            for indices, photos, errors in feed:
                refuse_unreadable(errors, indices, feed.dataset.files)

                def compute(pieces, photos=photos):
                    inputs = (
                        loader.normalize(part.to(self.device, non_blocking=True), *self.scale)
                        for part in photos.tensor_split(min(pieces, len(photos)))
                    )
                    with self.accelerator.autocast():  # the network alone: what is made of its outputs is float32
                        outputs = [net(part).float() for part in inputs]
                    return self.heads.answers(torch.cat(outputs))

                shares.append((indices, self.fitting(compute, len(indices)).float().cpu()))
        if self.accelerator.num_processes > 1:
            shares = gather_object(shares)
        order = torch.cat([indices for indices, _ in shares]).argsort()
        return torch.cat([found for _, found in shares])[order]


def peak_memory():
    """The most memory that this process has held, in GB: of the GPU where there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def refuse_unreadable(errors, indices, files):
    """Raise InputError if a photo that was readable when training began no longer is."""
    for error, index in zip(errors, indices.tolist(), strict=True):
        if error:
            raise InputError(f"{files[index]}: can't be read any more ({error}); start again to leave it out")
