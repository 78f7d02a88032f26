import pytest
from small import small_unet

from ldm.unet import UNet


@pytest.fixture(scope="module")
def unet() -> UNet:
    return small_unet()
