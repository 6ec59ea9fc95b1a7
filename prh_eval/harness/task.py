"""The lm-eval task: how a model's neighbour graphs of captions agree with a reference's."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import bits_per_byte
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig

from prh_eval import __version__
from prh_eval.alignment.graph import GRAPH_K
from prh_eval.alignment.registry import HEADLINE, check_similarity, metric
from prh_eval.errors import PrhEvalError, show_without_traceback
from prh_eval.features.words import shared_words
from prh_eval.harness import requests
from prh_eval.harness.options import parse_options
from prh_eval.harness.requests import CaptionNeighbors, CaptionSettings
from prh_eval.harness.scoring import Against, Metrics, Scored, reported, score
from prh_eval.pairs.dataset import PairedDataset
from prh_eval.pairs.load import load_pairs
from prh_eval.references.build import ceiling_artifact, reference_artifact, reference_features
from prh_eval.references.registry import load_reference
from prh_eval.schema import PairsSpec
from prh_eval.store import GraphArtifact

log = logging.getLogger(__name__)

requests.register()
show_without_traceback()

if logging.getLogger("lm_eval").handlers:
    # Its command line shows its own remarks only; why a reference is built should be among them.
    logging.getLogger("prh_eval").parent = logging.getLogger("lm_eval")


def _bits_per_byte_stderr(values: Sequence[tuple[float, int]]) -> float:
    """Standard error over items of a ratio of sums (Cochran 1977, Sampling Techniques, 2.11)."""
    nats, size = zip(*values, strict=True)
    ratio = math.fsum(nats) / math.fsum(size)
    squares = math.fsum((one - ratio * many) ** 2 for one, many in values)
    n = len(values)
    return math.sqrt(squares * n / (n - 1)) / math.fsum(size) / math.log(2)


# Of pairs (log-probability, bytes), one an item.
ON_REQUEST: Metrics = {
    "bits_per_byte": (bits_per_byte, False),
    "bits_per_byte_stderr": (_bits_per_byte_stderr, None),
}


class AlignmentTask(Task):
    """An lm-eval task that scores a language model by its alignment with a reference.

    Args:
        config: The task YAML as a dict; its ``metadata`` carries the options (keys ``prh_...``).

    Raises:
        PrhEvalError: On unknown or wrong options, or an unknown or broken reference.
    """

    OUTPUT_TYPE = requests.REQUEST_TYPE

    # Task.__init__ would download a data set by name at once; ours is loaded when it is needed.
    def __init__(self, config: Mapping[str, Any]) -> None:
        metadata = dict(config.get("metadata") or {})
        name = str(config.get("task"))
        self.options = parse_options(metadata, name)
        self.reference = load_reference(self.options.reference)
        check_similarity(self.options.metric, self.reference.similarity)
        self.VERSION = metadata.get("version", 0)
        self._trust_remote_code = _trusts_remote_code(metadata)
        metadata.update(self.options.as_metadata())
        known = {field: value for field, value in config.items() if field != "class"}
        try:
            self._config = TaskConfig(
                **{**known, "output_type": self.OUTPUT_TYPE, "metadata": metadata}
            )
        except TypeError as error:
            raise PrhEvalError(f"task {name}: its YAML has a key lm-eval lacks: {error}") from None
        self._metrics = reported(self.options)
        if self.options.bits_per_byte:
            self._metrics |= ON_REQUEST
        self._config.metric_list = [
            {"metric": name} if better is None else {"metric": name, "higher_is_better": better}
            for name, (_, better) in self._metrics.items()
        ]
        for field, value in _data_fields(self.reference.pairs).items():
            setattr(self._config, field, value)
        self._instances: list[Instance] | None = None
        self._all_pairs: PairedDataset | None = None
        self._pairs: PairedDataset | None = None
        self._against: Against | None = None
        self._scored: tuple[GraphArtifact, Scored] | None = None

    # ------------------------------------------------------------------ documents

    def has_training_docs(self) -> bool:
        """No: nothing is trained."""
        return False

    def has_validation_docs(self) -> bool:
        """No: all items are test items."""
        return False

    def has_test_docs(self) -> bool:
        """Yes."""
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """Every item of the paired data: its id, its first caption, and all that are averaged."""
        pairs = self._load_pairs()
        averaged = self.options.caption == "mean"
        return [
            {"id": item, "caption": captions[0]}
            | ({"captions": list(captions)} if averaged else {})
            for item, captions in zip(pairs.ids, pairs.captions, strict=True)
        ]

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The first caption, as it is."""
        return str(doc["caption"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """What the caption is paired with: the item's id."""
        return str(doc["id"])

    def fewshot_context(self, doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> str:
        """The caption alone: it is represented, not completed, so nothing may stand before it."""
        return self.doc_to_text(doc)

    def _load_pairs(self) -> PairedDataset:
        if self._all_pairs is None:
            self._all_pairs = load_pairs(self.reference.pairs, caption=self.options.caption)
        return self._all_pairs

    # ------------------------------------------------------------------ requests

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        samples: list[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        cache_requests: bool = False,
        rewrite_requests_cache: bool = False,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        **kwargs: Any,
    ) -> None:
        """Choose the items, make the reference's graph of them, and a request for each.

        With ``limit`` or ``samples`` the captions are ranked among the chosen items only, and so
        are the reference's, so that the score is a true one for that smaller set.

        Raises:
            PrhEvalError: If fewer than k + 2 items are chosen, or the data or the reference's
                encoder cannot be had.
        """
        if apply_chat_template or system_instruction:
            log.warning(
                "%s: captions are read as they are, without chat template or system instruction.",
                self.task_name,
            )
        everything = self._load_pairs()
        every = range(len(everything))
        chosen: Sequence[int] = every[: int(limit)] if limit else every
        if samples:
            chosen = sorted({index for index in samples if index in every})
        if len(chosen) < self.options.k + 2:
            raise PrhEvalError(
                f"{self.task_name}: {len(chosen)} items are too few for k = {self.options.k}; at "
                f"least {self.options.k + 2} are needed (see --limit, --samples and prh_k)"
            )
        whole = len(chosen) == len(everything)
        self._pairs = everything if whole else everything.select(chosen)
        if not self._predicts_only():
            self._against = self._to_score_against(self._pairs)
        super().build_all_requests(
            limit=limit,
            samples=samples,
            rank=rank,
            world_size=world_size,
            cache_requests=cache_requests,
            rewrite_requests_cache=rewrite_requests_cache,
        )
        if cache_requests and not self._instances_are_current(limit, samples, rank, world_size):
            # lm-eval's request cache knows a task's name only, not its options.
            log.info("%s: the cached requests are of other options; made anew.", self.task_name)
            super().build_all_requests(
                limit=limit, samples=samples, rank=rank, world_size=world_size
            )

    def _to_score_against(self, pairs: PairedDataset) -> Against:
        """The reference on these pairs, and what is scored against it beside the model."""
        options, reference, trusted = self.options, self.reference, self._trust_remote_code
        features = None
        if metric(options.metric).needs == "features":
            # Before the graphs, which are then made of them: the encoder runs once.
            features = reference_features(reference, pairs, trust_remote_code=trusted)
        found = reference_artifact(
            reference,
            pairs,
            protocol=options.protocol,
            k=options.k,
            trust_remote_code=trusted,
        )
        if options.metric != HEADLINE:
            return Against(found, features=features)
        relative = ceiling_artifact(reference, pairs, protocol=options.protocol, k=options.k)
        if reference.relative and relative is None:
            log.info(
                "%s: how well %s agrees with its near relative %s, a ceiling, is not known here; "
                "`prh-eval references build %s` makes it known.",
                *(self.task_name, reference.name, reference.relative, reference.relative),
            )
        words = shared_words(pairs.captions, found.graph, options.k)
        return Against(found, shared_words=words, relative=relative)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """One request, for the item's neighbours and, if asked for, its captions' probability."""
        metadata = kwargs["metadata"]
        return [requests.caption_request(doc, _captions(doc), self._settings(), metadata=metadata)]

    def _settings(self) -> CaptionSettings:
        assert self._pairs is not None
        return CaptionSettings(
            data=self._pairs.name,
            items=self._pairs.items_fingerprint,
            captions=self._pairs.fingerprint,
            pooling=self.options.pooling,
            protocol=self.options.protocol,
            graph_k=min(max(GRAPH_K, self.options.k), len(self._pairs) - 1),
            probabilities=self.options.bits_per_byte,
            features=metric(self.options.metric).needs == "features",
            control=self.options.control,
        )

    def _instances_are_current(
        self, limit: int | None, samples: list[int] | None, rank: int, world_size: int
    ) -> bool:
        docs = self.doc_iterator(rank=rank, limit=limit, world_size=world_size, samples=samples)
        metadata = (self.config.task, None, self.config.repeats)
        wanted = [
            (doc_id, instance.request_type, instance.arguments)
            for doc_id, doc in docs
            for instance in self.construct_requests(doc, self.doc_to_text(doc), metadata=metadata)
        ]
        cached = [(i.doc_id, i.request_type, i.arguments) for i in self._instances or []]
        return wanted == cached

    def _predicts_only(self) -> bool:
        return "bypass" in getattr(self, "_metric_fn_list", {})

    def apply_filters(self) -> None:
        """Pass every response through, under the name that says which captions were read."""
        for instance in self._instances or []:
            instance.filtered_resps[self.options.filter] = instance.resps[0]

    # ------------------------------------------------------------------ results

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """An item's own overlaps with the reference, and what the whole run shares.

        Args:
            doc: The document.
            results: The response to each of the document's requests.

        Returns:
            A value for every metric; the mean of ``mnn`` over documents is the score.
        """
        response: CaptionNeighbors = results[0]
        values = self._score(response).of(response.position)
        if self.options.bits_per_byte:
            if response.nats is None:
                raise PrhEvalError(
                    f"{self.task_name}: bits per byte need the model itself, which has not run; "
                    "leave out prh_bits_per_byte, or run it with lm_eval"
                )
            size = sum(self.count_bytes(caption) for caption in _captions(doc))
            found = (-float(response.nats[response.position]), size)
            values["bits_per_byte"] = values["bits_per_byte_stderr"] = found
        # lm-eval's table has the order in which they come. Few items have no cross-fitted score.
        return {name: values[name] for name in self._metrics if name in values}

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], Any]]:
        """How documents' values become the run's."""
        return {name: join for name, (join, _) in self._metrics.items()}

    def higher_is_better(self) -> dict[str, bool]:
        """Which metrics are better where higher."""
        return {name: flag for name, (_, flag) in self._metrics.items() if flag is not None}

    def _score(self, response: CaptionNeighbors) -> Scored:
        graphs = response.graphs
        if self._scored is None or self._scored[0] is not graphs:
            assert self._against is not None
            scored = score(response, self._against, self.options)
            self._scored = (graphs, scored)
            self._record(response, scored)
        return self._scored[1]

    def _record(self, response: CaptionNeighbors, scored: Scored) -> None:
        """Write what made the score into the config, which lm-eval's results file carries."""
        assert self._pairs is not None
        assert self._against is not None
        probabilities = {}
        if response.nats is not None:
            read = [caption for captions in self._pairs.captions for caption in captions]
            probabilities = {
                "nats": float(response.nats.sum()),
                "bytes": sum(self.count_bytes(caption) for caption in read),
            }
        self.config.metadata["alignment"] = {
            **scored.record,
            "metric": self.options.metric,
            "protocol": self.options.protocol,
            "pooling": self.options.pooling,
            "pairs": {
                **self._pairs.source,
                "items": len(self._pairs),
                "fingerprint": self._pairs.fingerprint,
            },
            "reference": self._against.reference.header,
            "model": response.graphs.header,
            **probabilities,
            "versions": {
                "prh_eval": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in ("lm_eval", "torch", "transformers")},
            },
        }


def _captions(doc: Mapping[str, Any]) -> list[str]:
    """The captions that are read of an item."""
    return doc.get("captions") or [doc["caption"]]


def _trusts_remote_code(metadata: Mapping[str, Any]) -> bool:
    """Whether lm-eval's command line allows code from model repositories."""
    # lm-eval merges --model_args into the metadata before it adds the flag --trust_remote_code to
    # them; the flag's other trace is in datasets' configuration.
    flag = getattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE", False)
    return metadata.get("trust_remote_code") is True or flag is True


def _data_fields(pairs: PairsSpec) -> dict[str, Any]:
    """What lm-eval's own task fields say of paired data, for its result files."""
    if pairs.kind == "hub":
        revision = {"revision": pairs.revision} if pairs.revision else {}
        return {
            "dataset_path": pairs.path,
            "dataset_name": pairs.subset,
            "test_split": pairs.split,
            "dataset_kwargs": revision,
        }
    place = f"prh_eval/{pairs.name}" if pairs.kind == "embedded" else pairs.path
    return {"dataset_path": place, "test_split": "train"}
