"""Bad inputs as rows of a table: a command line or a call of the library, and words of the one-line message.

bad_files.py writes the files; cli/test_bad_inputs.py makes the recipe `tiny` and the runs and states that rows name.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from networks import images_and_labels, student_and_teacher
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel, adaad_inner_loss, load_model, ops
from fastadaad.config import TeacherPolicy
from fastadaad.data import ResidentPipeline, Sampling, load_dataset
from fastadaad.evaluation import evaluate
from fastadaad.run_config import DataConfig, OptimConfig

EVALUATE = "evaluate teacher.safetensors --recipe tiny student.name=cnn-6-s1 -n 4 --attacks natural"
IDX = "train tiny data.name=fashion-mnist data.root"
FOLDER = "train tiny data.name=folder data.image_size=8 data.root"
RESUME = "train tiny optim.epochs=1 --resume --run-folder"


def setting(text: str) -> str:
    """Returns a command that only reads its settings."""
    return f"train tiny --print-config {text}"


CONFIGURATION = {
    "a radius in 0..255": (setting("inner.threat_model.epsilon=8"), "epsilon is 8.0", "write 8/255"),
    "an evaluation's radius in 0..255": (setting("evaluation.threat_model.epsilon=4"), "epsilon is 4.0", "4/255"),
    "a negative radius": (setting("inner.threat_model.epsilon=-1/255"), "'-1/255' is not a radius", "write it as"),
    "a radius divided by 0": (setting("inner.threat_model.epsilon=8/0"), "'8/0' is not a radius", "8/255"),
    "a step longer than the radius": (setting("inner.step_size=0.11"), "step_size 0.1100 is more than epsilon 0.1000"),
    "radius and step swapped": (
        setting("inner.threat_model.epsilon=2/255 inner.step_size=8/255"), "are the two swapped?",
    ),
    "one step longer than the ball": (
        setting("inner.num_steps=1 inner.step_size=0.21"), "more than twice epsilon", "set inner.step_size",
    ),
    "no steps": (setting("inner.num_steps=0"), "num_steps is 0", "1 or more"),
    "half a step": (setting("inner.num_steps=1.5"), "inner.num_steps is '1.5'", "a whole number"),
    "an unknown norm": (setting("inner.threat_model.norm=l3"), "inner.threat_model.norm is 'l3'", "linf or l2"),
    "an unknown start": (setting("inner.start=zero"), "inner.start is 'zero'", "uniform-unclipped or natural"),
    "limits swapped": (setting("inner.lower=1 inner.upper=0"), "lower 1.0 is not below upper 0.0", "swap them"),
    "a misspelt setting": (setting("optim.epoch=3"), "unknown setting optim.epoch=3", "did you mean optim.epochs?"),
    "a setting of another section": (setting("data.epochs=3"), "unknown setting", "did you mean optim.epochs?"),
    "a setting without a name": (setting("=3"), "unknown setting =3", "--print-config shows all"),
    "a word without an equals sign": (setting("soon"), "'soon' is not an override", "write section.field=value"),
    "a section as a value": (setting("optim=3"), "optim is a section", "optim.FIELD=VALUE"),
    "null for a section": (setting("optim=null"), "optim is null", "give a value, or leave it out"),
    "no value": (setting("optim.epochs="), "optim.epochs is ''", "a whole number"),
    "a word for a number": (setting("optim.learning_rate=fast"), "optim.learning_rate is 'fast'", "a finite number"),
    "NaN": (setting("optim.learning_rate=nan"), "optim.learning_rate is 'nan'", "a finite number"),
    "inf": (setting("optim.learning_rate=inf"), "optim.learning_rate is 'inf'", "a finite number"),
    "a radius divided by inf": (setting("inner.threat_model.epsilon=8/1e400"), "'8/1e400' is not a radius", "8/255"),
    "a seed of 80 bits": (setting("seed=1000000000000000000000000"), "seed is '1000000", "a whole number"),
    "a rate of 400 digits": (
        setting("optim.learning_rate=1" + 400 * "0"), "optim.learning_rate is '1000", "give a finite number",
    ),
    "a list of many empty items": (setting(f"'seed=[{100 * ' ,'}!]'"), "seed is '[ , ,", "a whole number"),
    "no learning": (setting("optim.learning_rate=0"), "learning_rate is 0.0", "must be positive"),
    "too much momentum": (setting("optim.momentum=9"), "momentum is 9.0", "[0, 1)"),
    "a negative decay": (setting("optim.weight_decay=-1"), "weight_decay is -1.0", "0 or more"),
    "milestones in epochs": (setting("optim.milestones=[100,150] optim.schedule=piecewise"), "write 0.5 for half-way"),
    "two averages": (setting("optim.ema_decay=0.9 optim.swa_begin=0.5"), "two ways to average", "optim.ema_decay=0"),
    "an empty batch": (setting("data.batch_size=0"), "batch_size is 0", "1 or more"),
    "half an image": (setting("data.batch_size=12.5"), "data.batch_size is '12.5'", "a whole number"),
    "an unknown engine": (setting("data.engine=ffcv"), "data.engine is 'ffcv'", "auto, resident, dali or torch"),
    "an unknown attack": (setting("evaluation.attacks=[natural,pgd]"), "unknown attack 'pgd'", "such as pgd20"),
    "an endless attack": (setting("evaluation.attacks=[pgd999999]"), "unknown attack 'pgd999999'", "such as pgd20"),
    "no attacks": (setting("evaluation.attacks=[]"), "attacks is empty", "give at least one"),
    "an option of another method": (setting("method_options.temperature=1"), "no option 'temperature'", "its options"),
    "an unknown policy": (setting("teacher.policy=often"), "teacher policy 'often'", "refreshed"),
    "an unknown precision": (setting("precision.student=fp8"), "precision.student is 'fp8'", "give auto, fp32"),
    "the method as a setting": (setting("method=pgd-at"), "write --method pgd-at"),
    "no teacher": (setting("teacher=null"), "method adaad needs a teacher", "set teacher.name"),
    "checkpoints never": (setting("checkpoint_every=0"), "checkpoint_every is 0", "1 or more"),
    "NaN ignored": (setting("on_nonfinite=ignore"), "on_nonfinite is 'ignore'", "stop or skip"),
    "deterministic maybe": (setting("deterministic=maybe"), "deterministic is 'maybe'", "true or false"),
    "global statistics": (setting("batch_norm=global"), "batch_norm is 'global'", "local or sync"),
    "a policy with an interval of 0": (lambda: TeacherPolicy(kind="refreshed", every=0), "every is 0", "1 or more"),
    "an l1 ball": (lambda: ThreatModel(norm="l1"), "norm is 'l1'", "choose linf or l2"),
    "an endless radius": (lambda: ThreatModel(norm="l2", epsilon=float("inf")), "epsilon is inf", "finite"),
    "crops of no size": (lambda: DataConfig(name="folder", min_crop_scale=0), "min_crop_scale is 0", "in (0, 1]"),
    "an unknown schedule": (lambda: OptimConfig(epochs=1, schedule="step"), "schedule is 'step'", "one-cycle"),
}  # fmt: skip

COMMAND_LINE = {
    "a list of runs in no folder": ("runs nowhere", "nowhere is no folder", "--run-folder"),
    "a report on no run": ("report empty", "empty holds neither a run nor a comparison", "fastadaad runs"),
    "a misspelt command": ("trian tiny", "unknown command 'trian'", "did you mean train?"),
    "an unknown option": ("train tiny --epochs 3", "unrecognized arguments: --epochs", "fastadaad train --help"),
    "an option without a value": ("train tiny --method", "--method: expected one argument"),
    "no recipe": ("train", "no recipe is named", "see fastadaad recipes"),
    "the meta device": ("train tiny device=meta", "device 'meta' cannot be used", "try device=cpu"),
    "a folder without a run to resume": (f"{RESUME} images", "images exists already", "another --run-folder"),
    "a recipe outside of runs": (setting("recipe=../x"), "recipe is '../x'", "letters, digits"),
    "an unknown recipe": ("train dem", "unknown recipe 'dem'", "did you mean demo?"),
    "a file for a recipe": ("train notes.txt", "unknown recipe 'notes.txt'", "fastadaad recipes lists all"),
    "an unknown method": ("train tiny --method adad", "unknown method 'adad'", "did you mean adaad?"),
    "a term twice": ("train tiny --method saad+igdm", "saad has IGDM's term already", "leave out +igdm"),
    "a method without its teacher": ("train tiny-teacher --method adaad", "adaad needs a teacher", "teacher.name"),
    "an unknown network": ("train tiny student.name=resnet19", "'resnet19' is unknown", "did you mean resnet18"),
    "an unknown data set": ("train tiny data.name=digit", "data set 'digit' is unknown", "use one of digits"),
    "an unknown device": ("train tiny device=abacus", "device 'abacus' cannot be used", "try device=cpu"),
    "graphs without a GPU": ("train tiny device=cpu mode=graph", "mode graph needs a CUDA device", "set mode=compiled"),
    "a batch larger than the set": ("train tiny data.batch_size=4000", "exceeds the 256 images", "batch_size <= 256"),
    "a split larger than the set": ("train tiny data.validation_size=5000", "validation_size 5000", "choose fewer"),
    "a negative seed": ("train tiny seed=-1", "seed -1 is outside", "choose a non-negative seed"),
    "images cropped away": ("train tiny data.padding=100", "data.padding is 100", "choose less than 8"),
    "images cut out": ("train tiny data.cutout=8", "data.cutout is 8", "choose less than 8"),
    "randaugment by any engine": (
        "train tiny data.auto_augment=randaugment", "data.engine is auto", "set data.engine=torch",
    ),
    "an unknown augmentation": (
        "train tiny data.auto_augment=cutmix data.engine=torch", "auto_augment", "randaugment",
    ),
    "colours of arrays": ("train tiny data.color_jitter=0.5", "color_jitter", "these are arrays: leave them out"),
    "an l2 attack in linf": ("train tiny evaluation.attacks=[cw-l2]", "cw-l2 needs an l2 radius", "use cw"),
    "an existing folder": ("train tiny --run-folder images", "images exists already", "give another --run-folder"),
    "a file for a folder": ("train tiny --run-folder notes.txt", "notes.txt exists already", "--run-folder"),
    "below a file": ("train tiny --run-folder notes.txt/run", "notes.txt/run", "Not a directory"),
    "a profile of -1 steps": ("train tiny --profile -1", "--profile is -1", "1 or more"),
    "a profile of some steps": ("train tiny --profile some", "--profile: invalid int value: 'some'", "train --help"),
    "a check of -1 images": ("train tiny --teacher-check -1", "teacher_check is -1", "0 or more"),
    "a check of some images": ("train tiny --teacher-check some", "teacher_check is 'some'", "a whole number"),
    "no time": ("train tiny --rank-timeout 0", "rank_timeout_s is 0.0", "a positive number of seconds"),
    "all the time": ("train tiny --rank-timeout inf", "rank_timeout_s is 'inf'", "a finite number"),
    "a change without a resume": ("train tiny --allow optim.epochs=3", "--allow optim.epochs=3", "add --resume"),
    "another seed for a run": (f"{RESUME} done --allow seed=1", "--allow seed: the state of the run depends on it"),
    "a misspelt change": (f"{RESUME} done --allow optim.epoch=3", "unknown setting optim.epoch=3", "optim.epochs?"),
    "a change to no number": (f"{RESUME} done --allow optim.epochs=x", "optim.epochs is 'x'", "a whole number"),
    "a change of nothing": (f"{RESUME} new --allow optim.epochs=3", "there is no checkpoint", "leave out --allow"),
    "resume with a value": ("train tiny --resume=yes", "argument --resume: ignored explicit argument 'yes'"),
    "an existing run": ("train tiny --run-folder done", "done exists already", "finished", "add --resume"),
    "another seed's run": (f"{RESUME} done seed=1", "belongs to another run", "seed 0 -> 1", "another --run-folder"),
    "another method's run": (f"{RESUME} done --method rslad", "belongs to another run", "method adaad -> rslad"),
    "another teacher's run": (
        f"{RESUME} done teacher.checkpoint=other_teacher.safetensors", "teacher.checkpoint has other contents",
    ),
    "no run or weights": ("evaluate", "required: RUN_OR_WEIGHTS; see", "--help"),
    "a missing run": ("evaluate nowhere", "nowhere does not exist", "give a run folder or a weights file"),
    "weights without a recipe": ("evaluate teacher.safetensors", "is not a run folder", "--recipe tells"),
    "a folder without a run": ("evaluate empty", "empty/config.json does not hold", "No such file", "the folder of"),
    "a shard beyond the last": (f"{EVALUATE} --shard 2/2", "'2/2' is not a shard", "write 0/2 and 1/2"),
    "one of no shards": (f"{EVALUATE} --shard 0/0", "'0/0' is not a shard", "write 0/2 and 1/2"),
    "no images": (f"{EVALUATE} -n 0", "num_images is 0", "give 1 or more"),
    "an empty list": (f"{EVALUATE} --attacks ,", "attacks is empty", "give at least one"),
    "an l2 radius in 0..255": (f"{EVALUATE},pgd1 --norm l2 --epsilon 9", "epsilon is 9 in l2", "write 9/255"),
    "a table for a folder": (f"{EVALUATE} --csv empty", "empty is a folder", "give the name of a file"),
    "a table in a missing folder": (f"{EVALUATE} --json nowhere/x.json", "nowhere/x.json cannot be written", "make it"),
    "a state in a file": (f"{EVALUATE} --state notes.txt", "notes.txt is not a folder", "give a folder"),
    "an attack on corruptions": (
        f"{EVALUATE} --corruptions empty", "accuracy without an attack", "leave out --attacks",
    ),
    "no corruptions": (
        f"{EVALUATE.partition(' --attacks')[0]} --corruptions empty", "empty holds no corruptions", "labels.npy",
    ),
    "no methods": ("compare tiny --methods ,", "--methods is empty", "name some"),
    "a compiled train mode": ("compare tiny inner.student_eval=false mode=compiled", "student_eval", "mode=auto"),
    "a comparison with no teacher": ("compare tiny-teacher", "has no teacher to compare with", "fastadaad recipes"),
    "a bad seed": ("compare tiny --seeds 0,x", "'0,x' is not a list of seeds", "write them as 0,1"),
    "no radii": ("sweep-epsilon tiny --epsilons ,", "--epsilons is empty", "give radii such as 4/255"),
    "radii in 0..255": ("sweep-epsilon tiny --epsilons 4,8", "epsilon is 4.0", "write 4/255"),
    "a picture of an unknown format": ("show-batch tiny -o x.xyz", "Format 'xyz' is not supported", "png"),
    "a picture of no images": ("show-batch tiny --images 0", "'0' is not a number of 1 or more"),
    "an epoch before the first": ("show-batch tiny --epoch -1", "epoch -1 is outside", "non-negative"),
    "an unknown suffix": ("export teacher.safetensors x.onnx", "x.onnx has another suffix", "give .safetensors"),
    "weights over weights": ("export whole.pt teacher.safetensors", "exists already", "give another name"),
    "a pack of no size": ("pack images out", "--image-size is missing", "such as 64"),
    "a pack over images": ("pack images images --image-size 8", "images holds something else", "give another OUT"),
    "a pack in a file": ("pack images notes.txt --image-size 8", "notes.txt cannot be written (File exists)"),
    "a fraction above 1": ("pack images out --image-size 8 --center-share 2", "center_share is 2.0", "in (0, 1]"),
    "a benchmark in a mode of CUDA": ("benchmark tiny device=cpu --modes graph", "mode graph needs a CUDA", "leave it"),
    "a benchmark in an unknown mode": ("benchmark tiny --modes fast", "mode 'fast' is unknown", "choose eager"),
    "a benchmark in TF32 on a CPU": ("benchmark tiny device=cpu --precisions tf32", "tf32 exists on CUDA", "fp32"),
    "a benchmark in fp16": ("benchmark tiny --precisions fp16", "fp16 has no plain program", "choose fp32"),
    "a benchmark of an adaptive policy": ("benchmark tiny --policies refreshed", "adapts its interval", "(every=5)"),
    "a benchmark of an unknown policy": ("benchmark tiny --policies often", "teacher policy 'often'", "refreshed"),
    "a benchmark of a method without a plain program": (
        "benchmark tiny --method adaad+igdm", "adaad+igdm has no plain program", "choose one of adaad",
    ),
    "a benchmark with AWP": ("benchmark tiny optim.awp_gamma=0.005", "optim.awp_gamma=0.005", "leave it out"),
    "a benchmark of an empty batch": ("benchmark tiny --batch-sizes 8,0", "'0' is not a number of 1 or more"),
    "a benchmark of too many rounds": ("benchmark tiny --rounds 91", "--rounds is 91", "at most 90"),
    "a benchmark into a folder that is used": ("benchmark tiny --output done", "done exists", "another --output"),
    "settings of no recipe": ("doctor optim.epochs=3", "optim.epochs=3 changes a recipe", "--max-batch RECIPE"),
    "another program's option": ("compat --lr 0.1", "--lr is not taken", "give --lr_max"),
    "another program's data set": ("compat --dataset mnist", "--dataset mnist is unknown", "choose one of digits"),
    "another program's method": ("compat --method Nothing", "--method Nothing is unknown", "choose one of adaad"),
}  # fmt: skip

FILES = {
    "a web page for safetensors": ("inspect page.safetensors", "page.safetensors is a web page", "fetch the file"),
    "a web page for torch.save": ("inspect page.pt", "page.pt is a web page", "fetch the file itself"),
    "no bytes": ("inspect empty.safetensors", "empty.safetensors is not a safetensors file", "fetch it again"),
    "truncated safetensors": ("inspect cut.safetensors", "cut.safetensors is not a safetensors file", "fetch it again"),
    "a truncated torch.save": ("inspect cut.pt", "cut.pt is not a torch.save file or is corrupt", "fetch it again"),
    "a flipped bit": ("inspect flipped.safetensors", "flipped.safetensors is not a safetensors file", "fetch it again"),
    "a flipped bit in a zip": ("inspect flipped.pt", "flipped.pt is not a torch.save file", "fetch it again"),
    "another format": ("inspect renamed.safetensors", "renamed.safetensors is compressed by gzip", "unpack it"),
    "a text file": ("inspect text.pt", "text.pt is not a torch.save file", "fetch it again"),
    "a pickle with code": ("inspect code.pt", "code.pt is refused", "mkdir", "save its state dict alone"),
    "a call that doubles a string": ("inspect hex.pt", "hex.pt is refused", "_codecs.encode with other", "save"),
    "a call of quadratic time": ("inspect punycode.pt", "punycode.pt is refused", "_codecs.encode with other"),
    "a string encoded repeatedly": ("inspect again.pt", "again.pt is refused", "_codecs.encode with other", "fill the"),
    "a device of many letters": ("inspect device.pt", "device.pt is refused", "torch.device with other", "fill the"),
    "a state dict without methods": ("inspect methods.pt", "methods.pt is not a torch.save file", "fetch it again"),
    "keys that collide": ("inspect collide.pt", "collide.pt is not a torch.save file", "fetch it again"),
    "a pickled network": ("inspect module.pt", "module.pt is refused", "save its state dict alone"),
    "a list": ("export list.pt x.safetensors", "list.pt holds no state dict", "save model.state_dict()"),
    "a folder for weights": ("inspect folder.pt", "folder.pt is a folder", "give a .safetensors"),
    "a teacher with code": ("train tiny teacher.checkpoint=code.pt", "code.pt is refused", "save its state dict"),
    "a folder for a teacher": ("train tiny teacher.checkpoint=folder.pt", "folder.pt is a folder", "give a"),
    "another teacher's weights": ("train tiny teacher.checkpoint=wider.safetensors", "does not fit", "check the"),
    "other classes": ("train tiny teacher.checkpoint=hundred.safetensors", "[100, 24] instead of [10", "num_classes"),
    "other channels": ("train tiny teacher.checkpoint=colour.safetensors", "instead of [6, 1, 3, 3]", "in_channels"),
    "a name too few": ("train tiny teacher.checkpoint=name_less.pt", "1 missing (fc.bias)", "check the model's name"),
    "a name too many": ("train tiny teacher.checkpoint=name_more.pt", "1 unexpected (head.weight)", "check the"),
    "NaN in a teacher": ("train tiny teacher.checkpoint=nan.safetensors", "returns NaN or inf", "give other ones"),
    "a teacher that guesses": ("train tiny --teacher-check 100", "cnn-6-s1 has", "normalisation", "--teacher-check 0"),
    "truncated checkpoints": (f"{RESUME} cut_run", "none of the", "cut_run/checkpoints", "move cut_run away"),
    "foreign checkpoints": (f"{RESUME} foreign_run", "none of the", "foreign_run/checkpoints", "move foreign_run away"),
    "a damaged state": (f"{EVALUATE},cw1 --state kept", "kept/cw1_", "cannot be read", "delete it, and this attack"),
    "a web page for a run": ("evaluate run_page", "run_page/config.json does not hold", "the folder of"),
    "a truncated run": ("evaluate run_cut", "run_cut/config.json does not hold", "the folder of"),
    "a list for a run": ("show-batch run_list", "run_list/config.json", "it is not a JSON object", "the folder of"),
    "brackets without end": ("evaluate run_deep", "run_deep/config.json does not hold", "the folder of"),
    "a run of other settings": ("evaluate run_unknown", "run_unknown/config.json", "unknown setting colour", "--print"),
    "a run with code": ("evaluate run_code", "run_code/config.json", "no option 'class_path'", "the folder of"),
    "a run with a setting twice": ("evaluate run_twice", "run_twice/config.json", "holds a name twice", "repair this"),
    "a run with NaN": ("evaluate run_nan", "run_nan/config.json", "it holds NaN", "the folder of"),
    "a run of a megabyte": ("show-batch run_huge", "run_huge/config.json", "at most 1048576 are read", "the folder of"),
    "a run of bytes": ("evaluate run_bytes", "run_bytes/config.json", "can't decode byte", "the folder of"),
    "a run without content": ("evaluate run_empty", "run_empty/config.json", "Expecting value", "the folder of"),
    "a run of a giant network": ("evaluate run_giant", "model wrn-70-16 266,", ".safetensors has", "check the name"),
    "a run's radius in 0..255": ("evaluate run_radius", "run_radius/config.json", "write 8/255"),
    "a folder for a configuration": ("evaluate run_folder", "run_folder/config.json", "it is no file", "the folder of"),
    "a run without weights": ("evaluate run_without_weights", "best.safetensors does not exist", "give a .safetensors"),
    "a run with a web page": ("evaluate run_page_weights", "best.safetensors is a web page", "fetch the file itself"),
    "a run of another network": ("evaluate run_other_weights", "best.safetensors does not fit", "check the model's"),
    "images in a web page": (f"{IDX}=idx_page", "train-images-idx3-ubyte is a web page", "delete it"),
    "images a byte short": (f"{IDX}=idx_cut", "has 6287 bytes, not 6288 as in its header", "delete it"),
    "images a byte long": (f"{IDX}=idx_long", "has 3153 bytes, not 3152 as in its header", "delete it"),
    "a header cut off": (f"{IDX}=idx_header", "train-labels-idx1-ubyte has 6 bytes", "delete it"),
    "foreign labels": (f"{IDX}=idx_foreign", "t10k-labels-idx1-ubyte is not an IDX file", "delete it"),
    "a label of no class": (f"{IDX}=idx_label_10", "holds the label 10, outside 0..9", "delete it"),
    "a billion images": (f"{IDX}=idx_huge", "train-images-idx3-ubyte has 6288 bytes", "delete it"),
    "a truncated gzip": (f"{IDX}=idx_gzip", "t10k-images-idx3-ubyte cannot be read", "delete it"),
    "no CIFAR": ("train tiny data.name=cifar10 data.root=empty", "data_batch_1 does not exist", "data.download=true"),
    "no npz": ("train tiny data.extra_images=no.npz", "no.npz does not exist", "set data.extra_images to an .npz"),
    "a web page for npz": ("train tiny data.extra_images=page.npz", "page.npz is a web page", "download it again"),
    "half an npz": ("train tiny data.extra_images=cut.npz", "cut.npz is truncated", "copy or make it again"),
    "npz without labels": ("train tiny data.extra_images=no_labels.npz", "lacks the arrays image and label", "save it"),
    "npz of colour": ("train tiny data.extra_images=colour.npz", "shape [8, 8, 3]", "give [H, W, C] = [8, 8, 1]"),
    "npz of floats": ("train tiny data.extra_images=floats.npz", "images as float64", "save them as uint8"),
    "npz with a label of no class": ("train tiny data.extra_images=label_10.npz", "the label 10", "give the labels"),
    "npz with a label too few": ("train tiny data.extra_images=label_less.npz", "5 labels for 6", "one label per"),
    "npz with code": ("train tiny data.extra_images=objects.npz", "objects.npz cannot be read", "make it again"),
    "npz of a trillion images": ("train tiny data.extra_images=huge.npz", "huge.npz cannot be read", "make it again"),
    "image files of no size": ("train tiny data.name=folder data.root=images", "set data.image_size"),
    "no image files": (f"{FOLDER}=empty", "empty/train does not exist", "set data.root=FOLDER"),
    "image files without a test set": (f"{FOLDER}=no_test", "holds train but no test or val", "put the test images"),
    "image files without classes": (f"{FOLDER}=flat", "no class folders, such as a.png", "sort the images"),
    "a class of no images": (f"{FOLDER}=empty_class", "emu holds no images", "or delete the folder"),
    "classes that differ": (f"{FOLDER}=other_classes", "dog has no counterpart in", "the same class folders"),
    "an image in a web page": (
        f"{FOLDER}=page_images data.validation_size=0 data.num_samples=null data.batch_size=2 data.engine=torch",
        "a.png is a web page", "data.on_error=skip",
    ),
    "no pack": ("train tiny data.name=packed data.root=empty", "empty/pack.json does not exist", "set data.root"),
    "a pack in a web page": ("train tiny data.name=packed data.root=pack_page", "cannot be read", "delete pack_page"),
    "a pack of a list": ("pack images pack_list --verify", "pack_list/pack.json cannot be read", "delete pack_list"),
    "a pack of brackets": ("pack images pack_deep --verify", "pack_deep/pack.json", "too deeply", "delete pack_deep"),
    "a pack cut off": ("pack images pack_cut --verify", "pack_cut/pack.json cannot be read", "delete pack_cut"),
    "an unfinished pack": ("pack images pack_begun --verify", "pack_begun is unfinished", "run the same"),
    "a full disk for a table": (f"{EVALUATE} --csv full.csv", "full.csv cannot be written (No space left", "make room"),
    "a full disk for JSON": (f"{EVALUATE} --json full.json", "full.json cannot be written (No space", "make room"),
    "a full disk for a picture": ("show-batch tiny -o full.png", "full.png cannot be written (No space", "make room"),
}  # fmt: skip

INNER = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.05, num_steps=1)


def step(change: Callable[[Tensor, Tensor], tuple] = lambda x, y: (x, y), **options) -> Callable[[], object]:
    """Returns a call of one ARD training step on a changed batch; `options` replace arguments or wrap a network."""

    def run() -> object:
        student, teacher = student_and_teacher()
        networks = {"student": student, "teacher": teacher} | {
            name: options.pop(name)(network)
            for name, network in (("student", student), ("teacher", teacher))
            if name in options
        }
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        distiller = Distiller(**networks, optimizer=optimizer, **{"method": "ard", "inner": INNER} | options)
        return distiller.step(*change(*images_and_labels()))

    return run


def drop_in(**options) -> Callable[[], object]:
    return lambda: adaad_inner_loss(*student_and_teacher(), images_and_labels()[0], **options)


def with_classes(number: int) -> Callable[[nn.Module], nn.Module]:
    return lambda network: nn.Sequential(*network[:-1], nn.Linear(network[-1].in_features, number))


def pipeline(images: Tensor, labels: Tensor, **sampling) -> Callable[[], object]:
    return lambda: ResidentPipeline(images, labels, sampling=Sampling(**{"batch_size": 2} | sampling))


IMAGES, LABELS = torch.zeros(4, 8, 8, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
TENSORS = {
    "pixels in 0..255": (step(lambda x, y: (255 * x, y)), "x_natural holds pixels from 0 to 255", "divide them by 255"),
    "bytes": (step(lambda x, y: ((255 * x).byte(), y)), "x_natural is torch.uint8", "give pixels in [0, 1]"),
    "normalised pixels": (step(lambda x, y: (4 * x - 2, y)), "outside [0, 1]", "normalise inside the network"),
    "pixels in half": (step(lambda x, y: (x.half(), y)), "x_natural is torch.float16", "use x_natural.float()"),
    "one image": (step(lambda x, y: (x[0], y)), "x_natural has shape [3, 8, 8]", "give images [B, C, H, W]"),
    "no tensor": (step(lambda x, y: (x.numpy(), y)), "x_natural is a ndarray", "torch.as_tensor"),
    "grey images": (step(lambda x, y: (x[:, :1], y)), "student cannot take images [1, 8, 8]", "for each other"),
    "no labels": (step(lambda x, y: (x,)), "labels are missing", "method ard needs them"),
    "labels from 1": (step(lambda x, y: (x, y.clamp(min=4) + 1)), "labels hold 5, outside 0..4", "from 0"),
    "negative labels": (step(lambda x, y: (x, y - 9)), "labels hold -", "outside 0..4"),
    "one-hot labels": (step(lambda x, y: (x, torch.eye(5).long()[y])), "labels have shape [16, 5]", "labels.argmax(1)"),
    "labels as floats": (step(lambda x, y: (x, y.float())), "labels are torch.float32", "labels.long()"),
    "a label too few": (step(lambda x, y: (x, y[1:])), "labels have shape [15] for 16 images", "one per image"),
    "labels on meta": (step(lambda x, y: (x, y.to("meta"))), "labels on meta", "move both to one device"),
    "a teacher on meta": (step(teacher=lambda t: t.to("meta")), "the teacher on meta", "move both to one device"),
    "other classes of the teacher": (
        step(teacher=with_classes(6)), "student has 5 classes and teacher 6", "the classes of the data set",
    ),
    "other classes of the student": (
        step(student=with_classes(3)), "student has 3 classes and teacher 5", "in the same order",
    ),
    "a map of logits": (step(student=lambda s: s[:4]), "student returns logits of shape [8, 12, 3, 3]", "[B, N]"),
    "no teacher for a step": (step(teacher=lambda t: None), "teacher is None: method ard needs one"),
    "a frozen student": (step(student=lambda s: s.requires_grad_(False)), "requires_grad_(True)"),
    "an unknown method of a step": (step(method="adad"), "unknown method 'adad'", "did you mean adaad?"),
    "an unknown mode": (step(mode="fast"), "mode is 'fast'", "choose eager, compiled, graph or auto"),
    "an unknown layout": (step(layout="NHWC"), "layout is 'NHWC'", "choose auto, contiguous or channels_last"),
    "empty micro-batches": (step(micro_batch=0), "micro_batch is 0", "1 or more"),
    "a negative perturbation": (step(awp_gamma=-0.1), "awp_gamma is -0.1", "0 or more"),
    "a step's radius in 0..255": (drop_in(epsilon=8, step_size=2), "epsilon is 8", "write 8/255"),
    "fewer than no steps": (drop_in(steps=-1), "num_steps is -1", "1 or more"),
    "limits of the drop-in function": (drop_in(clip_min=1.0, clip_max=0.0), "lower 1.0 is not below upper", "swap"),
    "an evaluation in 0..255": (
        lambda: evaluate(
            student_and_teacher()[0], lambda: [(255 * images_and_labels(4)[0], LABELS)], ["natural"],
            threat_model=ThreatModel(),
        ),
        "pixels from 0 to 255", "divide them by 255",
    ),
    "an evaluation of nothing": (
        lambda: evaluate(student_and_teacher()[0], list, ["natural"], threat_model=ThreatModel()), "no images",
    ),
    "a data set in floats": (pipeline(IMAGES.float(), LABELS), "images are torch.float32", "give uint8 [M, H, W, C]"),
    "labels of fewer images": (pipeline(IMAGES, LABELS[1:]), "labels are torch.int64 [3]", "one per image"),
    "no images at a time": (pipeline(IMAGES, LABELS, batch_size=0), "batch_size 0 is not positive", "at least 1"),
    "an unknown data set": (lambda: load_dataset("mnist"), "data set 'mnist' is unknown", "use one of digits"),
    "a network of no classes": (lambda: load_model("cnn-4", num_classes=0), "num_classes is 0", "1 or more"),
    "statistics of other channels": (lambda: load_model("cnn-4", mean=(0.1, 0.2)), "mean has 2 values", "per channel"),
    "a network of no depth": (lambda: load_model("wrn-11-2"), "depth 11 is not 6n + 4", "choose 10, 16"),
    "logits of other classes": (
        lambda: ops.kl_grad(torch.zeros(2, 3), torch.zeros(2, 4)), "teacher_logits has shape (2, 4)", "(2, 3)",
    ),
    "no teacher for a search": (lambda: InnerMaximizer(student_and_teacher()[0]), "teacher is None", "adaad needs one"),
}  # fmt: skip


class Row(NamedTuple):
    do: str | Callable[[], object]
    words: tuple[str, ...]


GROUPS = {"configuration": CONFIGURATION, "command line": COMMAND_LINE, "files": FILES, "tensors": TENSORS}
ROWS = {f"{group}: {name}": Row(do, words) for group, rows in GROUPS.items() for name, (do, *words) in rows.items()}
