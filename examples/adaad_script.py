"""A typical AdaAD program with one line changed: the import of `adaad_inner_loss`.

The network, the data, the loop and the loss are the program's own.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from fastadaad import adaad_inner_loss, load_model  # was: from adaad_loss import adaad_inner_loss
from fastadaad.models.shipped import checkpoint_path


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32 * 16, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(1))


def get_loader(batch_size):
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    return DataLoader(TensorDataset(images, labels), batch_size, shuffle=True, drop_last=True)


def train_epoch(net, teacher, loader, optimizer, device):
    losses = []
    for inputs, _ in loader:
        inputs = inputs.to(device)
        inputs_adv = adaad_inner_loss(net, teacher, inputs, step_size=0.05, steps=5, epsilon=0.15)
        net.train()
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_probs = F.softmax(teacher(inputs_adv), dim=1)
        loss = F.kl_div(F.log_softmax(net(inputs_adv), dim=1), teacher_probs, reduction="batchmean")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(epochs=2, device="cpu"):
    """Trains and returns the loss of each step, and the network."""
    torch.manual_seed(0)
    net = Net().to(device)
    teacher = load_model("cnn-72-s1", in_channels=1, checkpoint=checkpoint_path("shipped:demo-teacher"))
    teacher.to(device).eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader, losses = get_loader(batch_size=64), []
    for epoch in range(epochs):
        losses += train_epoch(net, teacher, loader, optimizer, device)
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses, net


if __name__ == "__main__":
    main()
