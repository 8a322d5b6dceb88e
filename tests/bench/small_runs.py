"""Settings of trainings that take a second, for tests of whole comparisons."""

SMALL = (
    "student.name=cnn-4-s1",
    "optim.epochs=2",
    "evaluation.every_epochs=1",
    "mode=eager",
    "teacher_check=16",
    "data.validation_size=16",
    "data.num_samples=64",
)
