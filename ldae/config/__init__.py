"""From a config to the parts that it names: checks, error sentences, building."""
