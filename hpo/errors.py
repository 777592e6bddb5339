"""What can be wrong with what the user asks of the search. Each message is one line: value, rule, way out."""


class SearchError(ValueError):
    """Something asked of the search cannot be done; the message names the flag, its value, the rule and the way out."""


class BadSetting(SearchError):
    """A flag or a line of the TOML file has a value that is not allowed."""


class MissingExtra(SearchError):
    """A package of an extra is not installed; the message gives the pip command."""

    def __init__(self, package: str, extra: str, what: str):
        super().__init__(f"{what} needs {package}, which is not installed: pip install 'peft-pareto[{extra}]'")
