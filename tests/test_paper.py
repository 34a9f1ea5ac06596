import pytest

from spatial_transformer.paper import data_tags, describe_data, network_name


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("mnist", "st_cnn", "tps"), "ST-CNN TPS"),
        (("quickstart", "st_fcn", "affine"), "ST-FCN affine"),
        (("mnist_addition", "addition_2st_fcn", "affine"), "2 × ST-FCN affine"),
        (("svhn_st_multi", "svhn_st_multi", "affine"), "ST-CNN Multi"),
        (("birds_4st", "birds_st", "location"), "4 × ST-CNN, 448 px"),
        (("mnist", "st_fcn", "attention"), "st_fcn attention"),
        (("birds_4st", "birds_st", "attention"), "birds_st attention"),
        (("mnist", "new", "none"), "new"),
    ],
)
def test_network_name(options, name):
    assert network_name(*options) == name


def test_data_labels():
    assert describe_data({"distortion": "tc", "digit": 0, "root": "x"}) == ["tc", "digit 0"]
    assert describe_data({"size": 448, "species": [1, 4, "7-9"]}) == ["448 px", "species 1,4,7-9"]
    assert data_tags({"species": None, "canvas": 60}) == {}
