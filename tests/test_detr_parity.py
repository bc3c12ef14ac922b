"""DAB-DETR and Deformable DETR against transformers as black boxes, DINO against plain loops."""

from __future__ import annotations

import pytest
import torch
from detr_oracles import LABELS, NaiveDino, close, every_layer, oracle_of, padded, some

from edgecrafter.models.detr import convert
from edgecrafter.models.detr.decoder import DinoDecoder
from edgecrafter.models.detr.padding import flat, masks_of
from edgecrafter.tasks import DETECT
from edgecrafter.types import QueryGroup


@pytest.fixture(scope="module", params=["dab", "deformable"])
def pair(request):
    """Our network, transformers' with the same numbers, and the answers of both to a padded batch with truth."""
    network, info, oracle = oracle_of(request.param)
    images, valid = padded()
    targets = some((3, 1))
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    found = oracle(images, pixel_mask=valid.long(), labels=labels, output_hidden_states=True)
    return network, info, oracle, every_layer(network, images, valid=valid), found, (images, valid, targets)


def their_layers(found):
    """(logits, boxes) of every layer of transformers'."""
    return [*((a["logits"], a["pred_boxes"]) for a in found.auxiliary_outputs), (found.logits, found.pred_boxes)]


def test_same_answers_of_every_layer(pair):
    network, info, _, outputs, found, (images, valid, _) = pair
    real = torch.cat([mask.flatten(1) for mask in masks_of(valid, outputs.memory)], dim=1)
    assert 0.5 < real.float().mean() < 0.95
    worst = {"memory": (flat(outputs.memory) - found.encoder_last_hidden_state)[real].abs().max().item()}
    layers = their_layers(found)
    assert len(layers) == len(outputs.layers) == 3
    for i, (layer, (logits, boxes)) in enumerate(zip(outputs.layers, layers, strict=True)):
        worst[f"logits {i}"] = (layer.logits - logits).abs().max().item()
        worst[f"boxes {i}"] = (layer.boxes - boxes).abs().max().item()
        assert logits.std(1).mean() > 1e-3 and boxes.std(1).mean() > 0.01  # queries differ: this says something
    print(f"\n{info.name}: " + ", ".join(f"{key} {value:.1e}" for key, value in worst.items()))
    assert max(worst.values()) < 1e-4
    with torch.no_grad():
        (last,) = network(images, valid=valid).layers
    close(last.logits, found.logits, 1e-4)
    close(last.boxes, found.pred_boxes, 1e-4)


def test_same_losses(pair):
    """transformers lists them without their weights."""
    _, info, _, outputs, found, (_, _, targets) = pair
    ours = DETECT.loss(LABELS, info.size)(outputs, targets)
    weights = {"focal": ("ce", 2 if info.size.arch == "deformable" else 1), "l1": ("bbox", 5), "giou": ("giou", 2)}
    for name, (theirs, weight) in weights.items():
        for view in ("", "_0", "_1"):
            assert ours[name + view].item() == pytest.approx(
                weight * found.loss_dict[f"loss_{theirs}{view}"].item(), rel=1e-4
            )
    assert len(ours) == 9


def test_same_gradients(pair):
    """Where gradients are cut between the layers is the same."""
    network, info, oracle, outputs, found, _ = pair
    random = torch.Generator().manual_seed(1)
    ours = [value for layer in outputs.layers for value in (layer.logits, layer.boxes)]
    theirs = [value for layer in their_layers(found) for value in layer]
    for model, values in ((network, ours), (oracle, theirs)):
        model.zero_grad()
        random.manual_seed(1)
        sums = [(value * torch.randn(value.shape, generator=random)).sum() for value in values]
        torch.stack(sums).sum().backward(retain_graph=True)
    wanted = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    wanted |= {sign: oracle.get_parameter(sign).grad for sign in convert.SIGNS if sign in oracle.state_dict()}
    wanted = convert.to_ours(wanted, ())
    compared, worst = 0, 0.0
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and name in wanted:
            compared += 1
            difference = (parameter.grad - wanted[name]).norm() / wanted[name].norm().clamp(min=0.05)
            worst = max(worst, difference.item())
    print(f"\n{info.name}: gradients of {compared} entries differ by {worst:.1e} of their length")
    assert compared > 100 and worst < 1e-3


@pytest.fixture(scope="module")
def naive():
    """A small decoder of DINO, its memory with padding, a group of noisy copies, and what plain loops make of them."""
    torch.manual_seed(0)
    decoder = DinoDecoder(5, 32, 40, 3, 6, levels=2, heads=4)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.05))
    memory = [torch.randn(2, 32, 5, 7, requires_grad=True), torch.randn(2, 32, 3, 4, requires_grad=True)]
    sides = [[(5, 7), (3, 4)], [(4, 5), (2, 3)]]
    masks = [torch.zeros(2, *level.shape[2:], dtype=torch.bool) for level in memory]
    for i, picture in enumerate(sides):
        for mask, (h, w) in zip(masks, picture, strict=True):
            mask[i, :h, :w] = True
    group = QueryGroup(
        torch.tensor([[0, 1, 2, 4], [3, 3, 5, 5]]), torch.rand(2, 4, 4) * 0.4 + 0.2, torch.tensor([0, 0, 1, 1])
    )
    outputs = decoder.train()(memory, masks, [group])
    loops = NaiveDino(decoder, 4)
    sees = [[0, 1, *range(4, 10)]] * 2 + [[2, 3, *range(4, 10)]] * 2 + [list(range(4, 10))] * 6
    found = []
    for i, picture in enumerate(sides):
        levels = [level[i] for level in memory]
        logits, boxes = loops.proposals(levels, picture, 6)
        table = decoder.groups.table.weight
        rows = [table[label] if label < 5 else table[label].detach() for label in group.labels[i]]  # 5 is padding
        content = torch.cat([torch.stack(rows), decoder.queries.weight])
        asked = torch.cat([group.boxes[i], boxes.detach()])
        found.append([(logits, boxes), *loops.decode(levels, picture, content, asked, sees)])
    return decoder, memory, outputs, found


def pairs_of(outputs, found):
    """(ours, plain loops') of proposals, own queries and the group's."""
    for kind in (0, 1):
        ours = [outputs.encoder, *outputs.layers]
        for j, layer in enumerate(ours):
            stacked = torch.stack([picture[j][kind] for picture in found])
            name = ("logits", "boxes")[kind]
            value = getattr(layer, name)
            if j:
                value = torch.cat([getattr(outputs.groups[0].layers[j - 1], name), value], dim=1)
            yield value, stacked


def test_dino_as_plain_loops_say_it(naive):
    _, _, outputs, found = naive
    assert outputs.encoder.boxes.max() < 0.99 and outputs.encoder.boxes.std(1).min() > 0.01  # proposals of real cells
    worst = max((a - b).abs().max().item() for a, b in pairs_of(outputs, found))
    print(f"\nDINO: worst difference {worst:.1e}")
    assert len(list(pairs_of(outputs, found))) == 8 and worst < 1e-4


def test_dino_looks_forward_twice(naive):
    """Gradients of every layer alone: those of layer e + 1 also reach the box head of layer e, and no further."""
    decoder, memory, outputs, found = naive
    both = list(pairs_of(outputs, found))
    inputs = [*decoder.parameters(), *memory]
    worst = 0.0
    for stage in zip(both[:4], both[4:], strict=True):  # logits and boxes of the proposals and of each layer
        gradients = []
        for side in (0, 1):
            random = torch.Generator().manual_seed(1)
            said = [(each[side] * torch.randn(each[side].shape, generator=random)).sum() for each in stage]
            gradients.append(torch.autograd.grad(sum(said), inputs, retain_graph=True, allow_unused=True))
        for ours, loops in zip(*gradients, strict=True):
            one, other = (torch.zeros(1) if g is None else g for g in (ours, loops))
            assert (one.norm() > 1e-5) == (other.norm() > 1e-5)
            if other.norm() > 1e-3:
                worst = max(worst, ((one - other).norm() / other.norm()).item())
    print(f"\nDINO: gradients differ by {worst:.1e} of their length")
    assert worst < 1e-3
    head = decoder.boxes[0].layers[0].weight

    def reaches(layer):
        (found,) = torch.autograd.grad(outputs.layers[layer].boxes.sum(), head, retain_graph=True, allow_unused=True)
        return found is not None and bool(found.norm() > 0)

    assert [reaches(layer) for layer in range(3)] == [True, True, False]
