"""Notebooks that tests write in place of the study's."""

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
SETUP = """
import rdl_study as study
from rdl_core.losses import LOSSES
study.parameters({name!r}, globals(), losses=LOSSES, depths=range(2, 101))
profile = study.load_profile(profile)
"""
PARAMETERS = 'profile = "mini"\nlosses = ["ranknet"]\ndepths = [5, 10]\nn_train = 3\nrate = 0.5'
SYSTEMS = """
from dataclasses import replace
students = {
    loss: profile.student(replace(
        profile.stage1, training=replace(profile.stage1.training, loss=loss, loss_options={})))
    for loss in losses
}
parts = {"losses": study.Part(profile=profile, systems=students, baseline=losses[0])}
"""


def write_notebook(root, name, *sources, parameters=PARAMETERS, setup=SETUP, systems=SYSTEMS):
    """A notebook in ``notebooks/`` of `root`; sources are of untagged cells behind the others."""
    import nbformat  # takes longer than torch
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    tagged = {"parameters": parameters, "setup": setup.format(name=name), "systems": systems}
    cells = [new_code_cell(x, metadata={"tags": [tag]}) for tag, x in tagged.items() if x]
    cells = [new_markdown_cell("# Title"), *cells, *map(new_code_cell, sources)]
    (root / "notebooks").mkdir(exist_ok=True)
    notebook = new_notebook(cells=cells, metadata=KERNEL)
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
