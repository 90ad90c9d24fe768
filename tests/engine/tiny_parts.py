"""A backbone of a few channels, with which a training takes seconds."""

from jittor import nn

from jrdp.models.layers import Conv, FrozenBatchNorm, relu


class Tiny(nn.Module):
    """C3, C4, C5 with 8, 8, 16 channels."""

    def __init__(self, freeze_at: int = 0):
        self.out_channels = (8, 8, 16)
        self.first = Conv(3, 8, 3, stride=8, bias=False)
        self.norm = FrozenBatchNorm(8)
        self.second = Conv(8, 8, 3, stride=2)
        self.third = Conv(8, 16, 3, stride=2)

    def execute(self, images):
        c3 = relu(self.norm(self.first(images)))
        c4 = relu(self.second(c3))
        return [c3, c4, relu(self.third(c4))]


class Dropped(Tiny):
    """With half of C5 left out at random in training."""

    def __init__(self, freeze_at: int = 0):
        super().__init__(freeze_at)
        self.drop = nn.Dropout(0.5)

    def execute(self, images):
        c3, c4, c5 = super().execute(images)
        return [c3, c4, self.drop(c5)]
