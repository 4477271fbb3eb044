"""Studies and judgments of zhang2015easgd."""
