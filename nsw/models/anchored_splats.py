"""Splats that hang on anchors: fixed points whose features, made aware of their neighbours, say what to draw.

Ververas et al., "SAGS: Structure-Aware 3D Gaussian Splatting", ECCV 2024. One splat an anchor. With `midpoints`, the model is
SAGS-Lite: key points alone have parameters, and the anchors between them are made anew whenever the model is opened.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nsw.cameras import Cameras, project
from nsw.models.gaussians import RESIZING, Seen, neighbour_distance
from nsw.models.midpoints import curvature, low_curvature, point_pairs, with_midpoints
from nsw.models.neighbour_graph import graph_of, message, strongest_difference
from nsw.models.splat_decoder import DecoderSettings, SplatDecoder
from nsw.renderers.render import Render

SIGMAS = 3.4  # beyond this many standard deviations the rasterizer draws nothing: sqrt(2 ln 255) = 3.33


@dataclass(frozen=True)
class AnchoredSettings:
    """What anchored splats are besides their numbers; the defaults are the official code's.

    Attributes:
        decoder: sizes of the networks.
        k: neighbours in the graph, the anchor itself among them.
        heard: share of the neighbours' message in a feature; 0 leaves the graph out.
        midpoints: numbers of neighbours that a flat key point and another one have midpoints with, as in
            `nsw.models.midpoints.point_pairs`; None: every anchor is stored.
        sh_degree: 0, because the decoder says colours and no harmonics are stored.
    """

    decoder: DecoderSettings = DecoderSettings()  # noqa: RUF009 (frozen)
    k: int = 10
    heard: float = 0.5
    midpoints: tuple[int, int] | None = None
    sh_degree: int = 0


class AnchoredSplats(nn.Module):
    """Anchors and the decoder that turns them into splats; empty at first, filled by `at_points` or by `load_state_dict`.

    Attributes:
        positions: [N, 3] places of the stored anchors; they never move.
        features: [N, F], 0 at the start.
        scales: [N, 6] logarithms: reach of the displacement along the axes, then of the splat's size.
        decoder: the `SplatDecoder`.
        graph, pairs: links of stored anchors, and those that have a midpoint; not stored, because positions say them.
    """

    def __init__(self, settings: AnchoredSettings):
        super().__init__()
        self.settings, shapes = settings, {"positions": 3, "features": settings.decoder.n_features, "scales": 6}
        for name, n in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(0, n), requires_grad=name != "positions"))
        self.decoder = SplatDecoder(settings.decoder)
        self.register_buffer("pairs", torch.zeros(0, 2, dtype=torch.long), persistent=False)
        self.register_buffer("places", torch.zeros(0, 3), persistent=False)
        self.graph = None

    @classmethod
    def at_points(cls, points: Float[Tensor, "N 3"], settings: AnchoredSettings, seed: int = 0) -> AnchoredSplats:
        """Return a model with an anchor at every point; reaches and sizes start as the distance to the three nearest anchors.

        Args:
            seed: of the networks.

        >>> model = AnchoredSplats.at_points(torch.rand(40, 3), AnchoredSettings(midpoints=(4, 2)))
        >>> len(model), len(model.places) > 60
        (40, True)
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(settings)
        model.positions = nn.Parameter(points.detach().float().clone(), requires_grad=False)
        model.features = nn.Parameter(torch.zeros(len(points), settings.decoder.n_features))
        model.link()
        model.scales = nn.Parameter(neighbour_distance(model.places)[: len(points), None].log().repeat(1, 6))
        return model

    def __len__(self) -> int:
        return self.positions.shape[0]

    @property
    def params(self) -> MutableMapping[str, nn.Parameter]:
        """What each stored anchor has, by name; setting one replaces it, and `link` belongs after that."""
        return self._parameters

    @property
    def means(self) -> Float[Tensor, "N 3"]:
        """Where splats may be expected: at the stored anchors."""
        return self.positions

    @torch.no_grad()
    def link(self) -> AnchoredSplats:
        """Find neighbours, pairs and midpoints anew."""
        points, wanted = self.positions.detach(), self.settings.midpoints
        with RESIZING:
            self.graph = graph_of(points, self.settings.k)
            if wanted:
                self.pairs = point_pairs(points, low_curvature(curvature(points)), *wanted)
            self.places = with_midpoints(points, self.pairs)
        return self

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        return self.link() if len(self) else self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take the number of anchors from what is loaded, and link them."""
        for name, mine in list(self._parameters.items()):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.shape[1:] == mine.shape[1:] and len(saved) != len(mine):
                setattr(self, name, nn.Parameter(mine.new_zeros(saved.shape), requires_grad=mine.requires_grad))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if len(self):
            self.link()

    def hear(self, kept: Bool[Tensor, "N"] | None = None) -> tuple[Float[Tensor, "n F"], Float[Tensor, "F"]]:
        r"""Return what each stored anchor's feature is once it has heard its neighbours, and the largest feature of all.

        $$a_t = \max_{s: t \in N(s)} (f_t - f_s),\quad b_i = \tfrac1{|N(i)|} \sum_j w_{ij} a_j,\quad h_i = f_i + \tfrac12 b_i$$
        (official code)

        Args:
            kept: as if there were these anchors alone, as the official code does with those that a camera sees.
        """
        f, graph = self.features, self.graph
        if kept is not None:
            f, graph = f[kept], graph.restricted(kept)
        h = f + self.settings.heard * message(strongest_difference(f, graph), graph) if self.settings.heard else f
        return h, f.amax(dim=0)

    def encode(self) -> Float[Tensor, "A E"]:
        """Return what every anchor knows, midpoints last: their places are their own, and what they heard is their ends' mean."""
        h, largest = self.hear()
        return self.decoder.encode(self.decoder.located(self.places), with_midpoints(h, self.pairs), largest)

    @torch.no_grad()
    def visible(self, camera: Cameras, displacements: Float[Tensor, "A 3"] | None = None) -> Bool[Tensor, "A"]:
        """Return which anchors, midpoints last, have a splat that may reach into the picture of one camera.

        Asking for the splat's place and size, not for the anchor's, matters: a large splat whose anchor stands outside of all
        training pictures would be trained nowhere, and appear in the first picture that its anchor enters.

        Args:
            displacements: of all splats; None finds them.
        """
        means = self.places + (self.displacements() if displacements is None else displacements)
        pixels, z = project(camera, means)
        size, focal = pixels.new_tensor([camera.width, camera.height]), camera.Ks[0, [0, 1], [0, 1]].to(pixels)
        stretch = (1 + (1.3 * size / (2 * focal)).square().sum()).sqrt()  # of splats off the axis, as far as the rasterizer goes
        largest = with_midpoints(self.scales[:, 3:], self.pairs).exp().amax(dim=1)
        reach = 2 + SIGMAS * stretch * focal.max() * largest[:, None] / z[0, :, None].clamp_min(1e-6)
        inside = ((pixels[0] > -reach) & (pixels[0] < size + reach)).all(dim=1) & (z[0] > 0)
        return inside if bool(inside.any()) else torch.ones_like(inside)

    def seen_from(self, camera: Cameras, whole: bool = True) -> tuple[Seen, Int[Tensor, "n"]]:
        """Return the splats that one camera sees, and the anchor of each.

        Args:
            whole: let features hear all neighbours; False asks only those that the camera sees, as the official code does.
        """
        camera = camera.to(self.positions.device)
        (h, largest), n = self.hear(), len(self)
        with torch.no_grad():
            located = self.decoder.located(self.places)
            known = self.decoder.encode(located, with_midpoints(h, self.pairs), largest)
            shown = self.visible(camera, self.decoder.displacement(known, with_midpoints(self.scales, self.pairs)))
        if not whole:
            kept = shown[:n]
            shown = torch.cat([kept, shown[n:] & kept[self.pairs].all(dim=1)])
            part, largest = self.hear(kept)
            h = part.new_zeros(n, part.shape[1]).index_put((kept.nonzero()[:, 0],), part)
        stored, between = shown[:n].nonzero()[:, 0], self.pairs[shown[n:]]

        def of(values: Tensor) -> Tensor:
            return torch.cat([values[stored], 0.5 * (values[between[:, 0]] + values[between[:, 1]])])

        places = self.places[shown]
        encoded = self.decoder.encode(self.decoder.located(places, located[shown]), of(h), largest)
        seen = self.decoder.decode(encoded, of(self.scales), places, camera.origins[0])
        return seen, shown.nonzero()[:, 0]

    def render_view(self, cameras: Cameras, whole: bool = True, **options) -> Render:
        """Draw pictures of C cameras; options of `nsw.renderers.splats.render_view`. One camera's meta also names the anchors."""
        from nsw.renderers.splats import render_each, render_view

        if len(cameras) > 1:
            return render_each(lambda camera: self.render_view(camera, whole, **options), cameras)
        with RESIZING:
            seen, anchors = self.seen_from(cameras, whole)
        render = render_view(seen, cameras, **options)
        render.extras["meta"] |= {"anchors": anchors, "seen": seen}
        return render

    @torch.no_grad()
    def displacements(self) -> Float[Tensor, "A 3"]:
        """Return how far each splat stands from its anchor, midpoints last."""
        return self.decoder.displacement(self.encode(), with_midpoints(self.scales, self.pairs))
