"""Site names and the hooks they stand for."""

from types import SimpleNamespace

import pytest

from sae.errors import UsageError
from workbench.models.sites import hooks_of, parse_site, site_hooks, site_of, sites


def _model(architecture: str) -> SimpleNamespace:
    return SimpleNamespace(cfg=SimpleNamespace(architecture=architecture, n_layers=2, model_name="m"))


def test_every_site_has_hooks_and_comes_back_from_its_output_hook():
    for architecture in ("GPTNeoXForCausalLM", "MambaForCausalLM", "FalconMambaForCausalLM"):
        model = _model(architecture)
        for site in sites(model):
            into, out = site_hooks(model, site)
            assert into.startswith(f"blocks.{parse_site(site)[0]}.") and (into == out) == (not site.endswith("TC"))
            assert site_of(out) == site.replace("TC", "M")
    assert hooks_of("L2R") == ("blocks.2.hook_resid_post",) * 2


@pytest.mark.parametrize("site", ["R2", "L2", "L2X", "l2R", "L-1R", ""])
def test_not_a_site(site):
    with pytest.raises(UsageError, match="not a site"):
        parse_site(site)


def test_a_site_the_model_lacks_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'L1S'"):
        site_hooks(_model("MambaForCausalLM"), "L9S")
    with pytest.raises(UsageError, match="no site 'L0A'"):
        site_hooks(_model("MambaForCausalLM"), "L0A")
    with pytest.raises(UsageError, match="not the output hook"):
        site_of("blocks.0.ln1.hook_scale")
