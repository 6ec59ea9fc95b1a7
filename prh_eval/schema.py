"""What a person may write in a reference's YAML: the one description of it.

Error messages, the JSON Schema of ``prh-eval references schema`` and the table in the documentation
all come from these models. Imports nothing heavy, for lm-eval lists references as tasks.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    TypeAdapter,
    model_validator,
)

Token = Literal["class", "mean", "pooled"]
Norm = Literal["before", "after"]
DType = Literal["float32", "bfloat16", "float16"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Similarity = Literal["cosine", "euclidean"]
# The names in prh_eval.alignment.registry, which imports torch.
Metric = Literal[
    "mutual_knn",
    "cycle_knn",
    "lcs_knn",
    "edit_distance_knn",
    "cknna",
    "cka",
    "cka_rbf",
    "debiased_cka",
    "svcca",
    "procrustes",
    "rsa",
    "linear_predictivity",
    "triplets",
]
Side = Annotated[StrictInt, Field(gt=0)]
_Color = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Name = Annotated[StrictStr, Field(min_length=1)]


def _by_shape(value: Any) -> str:
    return "several" if isinstance(value, (list, tuple)) else "one"


def _known_or_own(value: Any) -> str:
    return "known" if isinstance(value, str) else "own"


# Which of two forms is meant is told by the value's shape, so that a mistake in it is one mistake.
_ByShape = Discriminator(_by_shape)
_KnownOrOwn = Discriminator(_known_or_own)


class Section(BaseModel):
    """A part of a file that a person writes; a key that it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------- paired data


class _Captioned(Section):
    """Paired data with captions in one column or several."""

    caption_column: Annotated[
        Annotated[Name, Tag("one")] | Annotated[list[Name], Field(min_length=1), Tag("several")],
        _ByShape,
    ] = Field(
        "text",
        description="column of strings or of lists of strings; or several columns, a caption each",
    )


class HubPairs(_Captioned):
    """A data set of the Hugging Face hub, or a local folder in the same layout."""

    kind: Literal["hub"] = Field(description="hub: a data set of the Hugging Face hub")
    path: Name = Field(description="hub id, or a local folder in the hub's layout")
    revision: StrictStr | None = Field(
        None, description="branch, tag or commit; null: the default branch"
    )
    subset: StrictStr | None = Field(
        None, description="the data set's configuration; null: the default one"
    )
    split: Name = Field("train", description="split, as datasets.load_dataset takes it")
    image_column: Name | None = Field("image", description="column of images; null: there is none")


class ImageFolderPairs(_Captioned):
    """A local folder of images with their captions in a metadata file."""

    kind: Literal["imagefolder"] = Field(description="imagefolder: a local folder of images")
    path: Name = Field(
        description="the folder; its metadata.jsonl or metadata.csv names each image in the column "
        "file_name, relative to the folder"
    )


class TablePairs(_Captioned):
    """A local table, one row an item."""

    kind: Literal["table"] = Field(description="table: a local CSV, JSONL or Parquet file")
    path: Name = Field(description="the file; .csv, .jsonl or .parquet")
    image_column: Name | None = Field(
        None, description="column of image files, relative to the table; null: there is none"
    )
    id_column: Name | None = Field(
        None, description="column of the items' names, each of its own; null: row numbers"
    )


class EmbeddedPairs(Section):
    """Data that the package carries."""

    kind: Literal["embedded"] = Field(description="embedded: data that the package carries")
    name: Literal["xkcd_colors"] = Field(
        description="xkcd_colors: the 949 names of the xkcd colour survey with their sRGB colours"
    )


PairsSpec = Annotated[
    HubPairs | ImageFolderPairs | TablePairs | EmbeddedPairs, Field(discriminator="kind")
]


# ---------------------------------------------------------------- encoders


class Preprocessing(Section):
    """How an image becomes the encoder's input, after its conversion to RGB."""

    resize: Annotated[
        Annotated[Side, Tag("one")] | Annotated[tuple[Side, Side], Tag("several")], _ByShape
    ] = Field(
        description="length of the shorter side in pixels; or [height, width], whatever the shape"
    )
    crop: Side | None = Field(
        None, description="side of the centre square in pixels; null: nothing is cut off"
    )
    interpolation: Interpolation = Field(
        description="Pillow's filter; it averages over the pixels that fall into one (antialias)"
    )
    mean: _Color = Field(description="subtracted from red, green, blue in 0..1")
    std: _Color = Field(description="then divided by")

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize
        if self.crop is not None and self.crop > min(sides):
            raise ValueError(f"crop ({self.crop}) should be at most resize ({min(sides)})")
        if self.crop is None and isinstance(self.resize, int):
            raise ValueError(
                "crop is missing: with one number for resize images keep their shapes, so that "
                "they do not make a batch; give a crop, or resize: [height, width]"
            )
        if min(self.std) <= 0:
            raise ValueError("std should hold positive numbers")
        return self


class Encoder(Section):
    """What encoders of images and of texts have in common."""

    path: Name = Field(description="hub id, or a local folder")
    revision: StrictStr | None = Field(
        None, description="branch, tag or commit; null: the default branch"
    )
    dtype: DType = Field("float32", description="what it computes in; features are float32")
    trust_remote_code: StrictBool = Field(
        False,
        description="whether it needs code from its repository; that code is run only if the "
        "command line allows it too (--trust_remote_code)",
    )


class VisionEncoder(Encoder):
    """An image encoder, how its layers are read and how its input is prepared."""

    loader: Literal["transformers", "timm"] = Field(
        "transformers", description="library that loads it; timm needs prh_eval[timm]"
    )
    layers: Annotated[
        Annotated[Literal["blocks", "embedding_and_blocks"], Tag("one")]
        | Annotated[list[StrictInt], Tag("several")],
        _ByShape,
    ] = Field(
        "blocks",
        description="blocks: the output of every block (of every stage where the model has "
        "stages); embedding_and_blocks: also what enters the first; or a list of blocks, from 0, "
        "negative from the end",
    )
    token: Token = Field(
        description="class: the class token; mean: the mean over patches (or positions of a "
        "feature map); pooled: the model's own pooled output, which is one layer"
    )
    norm: Norm = Field(
        "before", description="whether the last block is read before or after the final norm"
    )
    preprocessing: Annotated[
        Annotated[Literal["processor"], Tag("known")] | Annotated[Preprocessing, Tag("own")],
        _KnownOrOwn,
    ] = Field(description="processor: the model's own; or explicit, the keys below")

    @model_validator(mode="after")
    def _check(self) -> VisionEncoder:
        _check_layers(self.layers)
        given = {"layers", "norm"} & self.model_fields_set
        if self.token == "pooled" and given:
            raise ValueError(
                f"with token: pooled there is one layer, the model's own output; "
                f"{' and '.join(sorted(given))} should be left out"
            )
        if self.loader == "timm" and self.trust_remote_code:
            raise ValueError("timm runs no code from a repository; leave trust_remote_code out")
        return self


class LanguageEncoder(Encoder):
    """A language model or sentence encoder, and how its layers are read."""

    loader: Literal["transformers", "sentence_transformers"] = Field(
        "transformers",
        description="library that loads it; sentence_transformers needs "
        "prh_eval[sentence-transformers]",
    )
    layers: Annotated[
        Annotated[Literal["hidden_states"], Tag("one")]
        | Annotated[list[StrictInt], Tag("several")],
        _ByShape,
    ] = Field(
        "hidden_states",
        description="hidden_states: the embedding output, then every block, the last after the "
        "final norm; or a list of them, from 0, negative from the end",
    )
    pooling: Literal["mean", "last", "pooled"] = Field(
        description="over a caption's tokens: their mean, or the last one; pooled: the sentence "
        "encoder's own output, which is one layer (loader sentence_transformers)"
    )
    prompt: StrictStr | None = Field(
        None,
        description="put before every caption, as some sentence encoders want it; null: the one "
        "that loader sentence_transformers finds with the model, if any",
    )
    max_length: Annotated[StrictInt, Field(gt=0)] | None = Field(
        None, description="captions are cut to so many tokens; null: the model's own limit"
    )

    @model_validator(mode="after")
    def _check(self) -> LanguageEncoder:
        _check_layers(self.layers)
        if (self.pooling == "pooled") != (self.loader == "sentence_transformers"):
            raise ValueError(
                "loader: sentence_transformers and pooling: pooled go together; either alone "
                "does not work"
            )
        if self.pooling == "pooled" and "layers" in self.model_fields_set:
            raise ValueError("with pooling: pooled there is one layer; layers should be left out")
        return self


def _check_layers(layers: str | list[int]) -> None:
    if isinstance(layers, list) and (not layers or len(set(layers)) != len(layers)):
        raise ValueError("layers should hold at least one number, and each once")


class FeatureFile(Section):
    """Features that were made elsewhere, one row an item in the order of the paired data."""

    path: Name = Field(
        description=".safetensors, .npz or .npy, or a .pt in the layout of the released code; "
        "tensors (items, width), one a layer, or (items, layers, width)"
    )
    names: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None,
        description="names of the tensors in the file, in the order of the layers; null: all of "
        "them, numbers in the names in numerical order",
    )


class ValueTable(Section):
    """A table of numbers, one row an item in the order of the paired data."""

    path: Name = Field(description="the file; .csv, .jsonl or .parquet")
    columns: Annotated[list[Name], Field(min_length=1)] = Field(description="columns of numbers")


# ---------------------------------------------------------------- references


_SIMILARITY = (
    "how neighbours are ranked. cosine: after the task's protocol (clipping, rows of unit length); "
    "euclidean: the values as they are, neither clipped nor normalised"
)


class _Common(Section):
    """What all kinds of reference have in common."""

    name: StrictStr = Field(
        "",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="the file's name without .yaml; may be left out",
    )
    version: StrictFloat = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="version of the task prh_align_<name>; raise it with every change that moves "
        "a score",
    )
    description: Name = Field(description="one line")
    pairs: PairsSpec = Field(description="the paired data it is used on")
    licence: Name = Field(description="licence of the encoder or values (SPDX where there is)")
    citation: Name = Field(description="whom to cite")
    family: StrictStr | None = Field(None, description="which encoders it is a sibling of")
    parameters: Annotated[StrictInt, Field(gt=0)] | None = Field(
        None, description="number of parameters"
    )
    similarity: Similarity = Field("cosine", description=_SIMILARITY)
    metric: Metric = Field(
        "mutual_knn",
        description="what the task prh_align_<name> measures; metadata may say otherwise",
    )
    relative: Name | None = Field(
        None,
        description="name of another reference on the same pairs, its near relative: how well the "
        "two agree is a ceiling for any model's score",
    )

    @model_validator(mode="after")
    def _check_relative(self) -> _Common:
        if self.relative is not None and self.relative == self.name:
            raise ValueError("relative should name another reference than this one")
        return self


class VisionReference(_Common):
    """An image encoder on the images of paired data."""

    kind: Literal["vision"] = Field(description="vision: an image encoder")
    encoder: VisionEncoder = Field(description="the encoder")


class LanguageReference(_Common):
    """A language model or sentence encoder on the captions themselves."""

    kind: Literal["language"] = Field(description="language: a language model, on the captions")
    encoder: LanguageEncoder = Field(description="the encoder")


class FeaturesReference(_Common):
    """Features from a file, of whatever encoder and modality."""

    kind: Literal["features"] = Field(description="features: features from a file")
    features: FeatureFile = Field(description="the file")


class ValuesReference(_Common):
    """Known values of each item."""

    kind: Literal["values"] = Field(description="values: known target values of each item")
    values: Annotated[
        Annotated[Literal["cielab"], Tag("known")] | Annotated[ValueTable, Tag("own")],
        _KnownOrOwn,
    ] = Field(description="cielab: CIELAB (D65) of the items' colours; or a table, the keys below")
    similarity: Similarity = Field("euclidean", description=_SIMILARITY)


Reference = VisionReference | LanguageReference | FeaturesReference | ValuesReference

REFERENCE: TypeAdapter[Reference] = TypeAdapter(Annotated[Reference, Field(discriminator="kind")])
