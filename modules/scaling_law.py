"""Scaling laws of quantisation-aware training (Chen et al. 2025, arXiv 2505.14302).

    L(N, D)       = A / N^alpha + B / D^beta + E                              (1)  Chinchilla
    L(N, D, G)    = L(N, D) + delta(N, D, G)                                  (4)
    delta(N, D, G) = k D^gamma_d (log2 G)^gamma_g / N^gamma_n                 (5)  QAT error

N is the count of non-embedding parameters, D that of training tokens, G the number of elements that
share a scale; losses and delta are nats per token. `scaling_law_fit` fits these laws. Numpy only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class DeltaLaw(Protocol):
    """Anything that predicts the error of quantisation."""

    def delta(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> Array:
        """Loss minus that of the unquantised run, nats."""
        ...


@dataclass(frozen=True)
class Chinchilla:
    """Loss of the unquantised model, equation (1) (Hoffmann et al. 2022).

    Attributes:
        E: Loss that no model undercuts, nats per token.
        A: Scale of the term of the model size.
        alpha: Exponent of the model size.
        B: Scale of the term of the training tokens.
        beta: Exponent of the training tokens.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, num_parameters: ArrayLike, num_tokens: ArrayLike) -> Array:
        """Predicted loss, nats per token.

        Args:
            num_parameters: N, positive; of any shape that broadcasts with the others.
            num_tokens: D, positive.

        Raises:
            ValueError: A count is not positive.
        """
        n, d = _count("num_parameters", num_parameters), _count("num_tokens", num_tokens)
        return self.A / n**self.alpha + self.B / d**self.beta + self.E

    def effective_parameter_multiplier(self, delta: ArrayLike, num_parameters: ArrayLike) -> Array:
        """The share of the parameters that an unquantised model needs for the same loss, (12).

        Args:
            delta: Error of quantisation, nats.
            num_parameters: N, positive.

        Returns:
            In (0, 1] for delta >= 0; above 1 where quantisation has helped, NaN where it has helped
            more than any number of parameters could.
        """
        n = _count("num_parameters", num_parameters)
        share = self.A / (self.A + np.asarray(delta, dtype=np.float64) * n**self.alpha)
        share = np.where(share > 0, share, np.nan)
        return np.asarray(share ** (1 / self.alpha))


@dataclass(frozen=True)
class QATErrorLaw:
    """Error of quantisation-aware training, equation (5).

    The paper's constants are all positive: the error falls with model size, rises with training
    tokens and with the group size. With `gamma_d` = 0 it is the law without tokens of its Table 2.

    Attributes:
        k: Scale, positive.
        gamma_n: How fast the error falls with the model size.
        gamma_d: How fast it rises with the training tokens.
        gamma_g: How fast it rises with log2 of the group size.
    """

    k: float
    gamma_n: float
    gamma_d: float
    gamma_g: float

    def delta(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> Array:
        """Predicted error, nats; 0 at G = 1, where each element has a scale of its own.

        Args:
            num_parameters: N, positive; of any shape that broadcasts with the others.
            num_tokens: D, positive.
            group_size: G, at least 1.

        Raises:
            ValueError: A count is not positive, or a group size below 1.
        """
        n, d = _count("num_parameters", num_parameters), _count("num_tokens", num_tokens)
        bits = np.log2(_count("group_size", group_size, least=1.0))
        granularity = np.where(bits > 0, bits, 1.0) ** self.gamma_g * (bits > 0)
        return np.asarray(self.k * d**self.gamma_d * granularity / n**self.gamma_n)

    @property
    def iso_delta_slope(self) -> float:
        """Slope gamma_n / gamma_d of the lines of equal error over (log10 N, log10 D).

        That many decades of further tokens undo what one decade of parameters gains. Infinite for
        a law without tokens.
        """
        return self.gamma_n / self.gamma_d if self.gamma_d else np.inf


@dataclass(frozen=True)
class EPMLaw:
    """Error as a constant loss of parameters per group size, equation (3).

    The earlier law (Frantar et al. 2025, arXiv 2502.16440; Kumar et al. 2024, arXiv 2411.04330):
    quantisation leaves a share `eff` of the parameters, whatever the model size and the tokens.

    Attributes:
        chinchilla: Loss of the unquantised model.
        multipliers: Group size -> eff.
    """

    chinchilla: Chinchilla
    multipliers: Mapping[float, float]

    def delta(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> Array:
        """Predicted error, nats, which does not depend on the tokens.

        Args:
            num_parameters: N, positive; of any shape that broadcasts with the others.
            num_tokens: D, positive.
            group_size: G, one of those that the law was fitted on.

        Raises:
            ValueError: The law has no constant for a group size.
        """
        n, d, g = np.broadcast_arrays(
            _count("num_parameters", num_parameters),
            _count("num_tokens", num_tokens),
            _count("group_size", group_size, least=1.0),
        )
        del d
        unknown = sorted(set(g.flat) - set(self.multipliers))
        if unknown:
            known = ", ".join(f"{size:g}" for size in self.multipliers)
            raise ValueError(
                f"group_size {unknown[0]:g}: this law has a constant for each of {known} and none "
                "in between; use QATErrorLaw"
            )
        eff = np.array([self.multipliers[size] for size in g.flat]).reshape(g.shape)
        a, alpha = self.chinchilla.A, self.chinchilla.alpha
        return np.asarray(a / (n * eff) ** alpha - a / n**alpha)


@dataclass(frozen=True)
class FittedRange:
    """Where a law has been measured; beyond it lies extrapolation.

    Attributes:
        num_parameters: Smallest and largest N.
        num_tokens: Smallest and largest D.
        group_size: Smallest and largest G.
        tokens_per_parameter: Smallest and largest D / N.
    """

    num_parameters: tuple[float, float]
    num_tokens: tuple[float, float]
    group_size: tuple[float, float]
    tokens_per_parameter: tuple[float, float]

    @classmethod
    def of(
        cls, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> "FittedRange":
        """The range of these runs."""
        n, d, g = (
            np.asarray(x, dtype=np.float64) for x in (num_parameters, num_tokens, group_size)
        )
        return cls(*((float(x.min()), float(x.max())) for x in (n, d, g, d / n)))

    def departures(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> list[str]:
        """Says what is asked for outside the range, one sentence per quantity; empty when nothing.

        Args:
            num_parameters: N; of any shape that broadcasts with the others.
            num_tokens: D.
            group_size: G.
        """
        asked = asdict(FittedRange.of(num_parameters, num_tokens, group_size))
        sentences = []
        for name, (low, high) in asdict(self).items():
            least, most = asked[name]
            if least < low * 0.99 or most > high * 1.01:  # 595M names a model of 594.5M
                given = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
                sentences.append(
                    f"{name} {given} is outside the {low:.4g} to {high:.4g} the law was fitted on: "
                    "an extrapolation"
                )
        return sentences


@dataclass(frozen=True)
class ScalingLaw:
    """Loss of a quantised model, equation (4), for one precision.

    Attributes:
        error: What quantisation adds.
        fitted_range: Where `error` was measured.
        chinchilla: Loss without quantisation; None where no baselines were there to fit it.
        log_covariance: Covariance (4, 4) of the fitted (log k, gamma_n, gamma_d, gamma_g); None
            where it is not known.
    """

    error: QATErrorLaw
    fitted_range: FittedRange
    chinchilla: Chinchilla | None = None
    log_covariance: tuple[tuple[float, ...], ...] | None = None

    def delta(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> Array:
        """Predicted error, nats (`QATErrorLaw.delta`)."""
        return self.error.delta(num_parameters, num_tokens, group_size)

    def delta_interval(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> tuple[Array, Array] | None:
        """The 95 % interval of the predicted error, nats; None where the law has no covariance.

        It holds the uncertainty of the fitted constants, on the assumption that the law is true;
        a single run scatters around it.
        """
        if self.log_covariance is None:
            return None
        delta = self.delta(num_parameters, num_tokens, group_size)
        n, d, bits, _ = np.broadcast_arrays(
            np.log(num_parameters), np.log(num_tokens), np.log2(group_size), delta
        )
        log_bits = np.log(np.where(bits > 0, bits, 1.0))
        slopes = np.stack([np.ones(delta.shape), -n, d, log_bits], axis=-1)
        variance = np.sum((slopes @ np.array(self.log_covariance)) * slopes, axis=-1)
        factor = np.exp(1.96 * np.sqrt(np.maximum(variance, 0.0)))
        return delta / factor, delta * factor

    def loss(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> Array:
        """Predicted loss of the quantised model, nats per token.

        Raises:
            ValueError: As `delta`, or there is no Chinchilla law.
        """
        delta = self.delta(num_parameters, num_tokens, group_size)
        return np.asarray(self._baseline().loss(num_parameters, num_tokens) + delta)

    def effective_parameter_multiplier(
        self, num_parameters: ArrayLike, num_tokens: ArrayLike, group_size: ArrayLike
    ) -> Array:
        """Share of the parameters that quantisation leaves, equation (13), in (0, 1].

        Raises:
            ValueError: As `delta`, or there is no Chinchilla law.
        """
        delta = self.delta(num_parameters, num_tokens, group_size)
        return self._baseline().effective_parameter_multiplier(delta, num_parameters)

    def _baseline(self) -> Chinchilla:
        if self.chinchilla is None:
            raise ValueError(
                "this law has no Chinchilla constants: fit it on a table that has the losses of "
                "unquantised runs of several sizes and lengths"
            )
        return self.chinchilla

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ScalingLaw":
        """The law of `as_dict`.

        Raises:
            ValueError: A constant is missing, unknown or no number.
        """
        try:
            chinchilla = content["chinchilla"]
            ranges = {name: (low, high) for name, (low, high) in content["fitted_range"].items()}
            covariance = content["log_covariance"]
            law = cls(
                QATErrorLaw(**content["error"]),
                FittedRange(**ranges),
                None if chinchilla is None else Chinchilla(**chinchilla),
                None if covariance is None else tuple(map(tuple, covariance)),
            )
            numbers = [*content["error"].values(), *(chinchilla or {}).values()]
            numbers += [end for pair in ranges.values() for end in pair]
            numbers += [number for row in covariance or () for number in row]
            if not np.all(np.isfinite(np.array(numbers, dtype=np.float64))):
                raise ValueError("a constant is not finite")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"no scaling law: {error}") from error
        return law


def load_laws(source: str | Path) -> dict[str, ScalingLaw]:
    """The laws of a preset or of a file.

    Args:
        source: `paper` for the constants of the paper, or a `law.json` of `tenfold fit-law`.

    Returns:
        Precision -> law.

    Raises:
        ValueError: There is no such preset or file, or it holds no laws.
    """
    if source == "paper":
        return dict(PAPER)
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"no preset and no file '{source}': give `paper`, or a law.json")
    try:
        laws = json.loads(path.read_text(encoding="utf-8"))["laws"]
        return {precision: ScalingLaw.from_dict(law) for precision, law in laws.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not the law.json of `tenfold fit-law`: {error}") from error


def error_ratio(activation_error: ArrayLike, weight_error: ArrayLike) -> Array:
    """R = delta_W16A4 / delta_W4A16; above 1, quantised activations cost more than weights."""
    return np.asarray(np.divide(activation_error, weight_error), dtype=np.float64)


def decomposition_coefficient(
    joint_error: ArrayLike, weight_error: ArrayLike, activation_error: ArrayLike
) -> float:
    """The k of delta_W4A4 = k (delta_W4A16 + delta_W16A4), by least squares (0.906 in the paper).

    Args:
        joint_error: delta_W4A4 of each (N, D, G), nats.
        weight_error: delta_W4A16 of the same.
        activation_error: delta_W16A4 of the same.
    """
    total = np.ravel(weight_error).astype(np.float64) + np.ravel(activation_error)
    return float(np.ravel(joint_error) @ total / (total @ total))


PAPER_CHINCHILLA = Chinchilla(E=1.9279, A=237.7042, alpha=0.3022, B=596.2490, beta=0.3022)
"""The constants of the paper, in which alpha = beta was imposed."""

PAPER_RANGE = FittedRange(
    num_parameters=(74e6, 595e6),
    num_tokens=(10e9, 100e9),
    # And whole tokens and channels, for which the paper does not say which number is G.
    group_size=(32, 256),
    tokens_per_parameter=(10e9 / 595e6, 100e9 / 74e6),
)

PAPER: Mapping[str, ScalingLaw] = {
    precision: ScalingLaw(QATErrorLaw(*constants), PAPER_RANGE, PAPER_CHINCHILLA)
    for precision, constants in {
        "w4a4": (0.1582, 0.2186, 0.0745, 0.7779),
        "w4a16": (0.2522, 0.3589, 0.1610, 0.3533),
        "w16a4": (0.1004, 0.1816, 0.0331, 0.9812),
        "w4a4_fc2a8": (0.3519, 0.2637, 0.0964, 0.3407),
        "w16a4_fc2a8": (0.1273, 0.2347, 0.0827, 0.4491),
    }.items()
}
"""Table 1 of the paper: precision -> law. `fc2a8`: 8 bits for the input of the second FFN layer."""


def _count(name: str, values: ArrayLike, least: float | None = None) -> Array:
    """Float64, all positive or at least `least`."""
    array = np.asarray(values, dtype=np.float64)
    low = array.min(initial=np.inf)
    if not np.all(array > 0 if least is None else array >= least):
        bound = "positive" if least is None else f"at least {least:g}"
        raise ValueError(f"{name} must be {bound}, got {low:g}")
    return array
